//! What a disk may hold after a power cut.
//!
//! Comes in: records, one after the other. Goes out: at any moment a folder as a power cut might leave it.
//! The rules are those of POSIX, stricter than most file systems are:
//!
//! - What a sync of a file covers is there. Of each block that was written since, any version that it
//!   had; the size is any that the file had. Blocks are pages or, torn, sectors.
//! - A sync of a file says nothing of its name. What a sync of a folder covers is there: names made,
//!   removed, renamed. Of what came later each change is there or not, whatever the others are, but no
//!   name takes a change that an earlier one was not taken for. A rename is there wholly or not.
//!
//! May not enter: what the files mean.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use crate::chance::Chance;
use crate::file::Data;
use crate::log::Record;

type Id = usize;
type Names = BTreeMap<String, Id>;

enum Body<'a> {
    File(Data<'a>),
    Folder { now: Names, lasting: Names },
    Link(&'a str),
}

struct Node<'a> {
    body: Body<'a>,
    /// Its newest name.
    place: Option<(Id, &'a str)>,
}

/// Names that change together.
struct Change<'a>(Vec<(Id, &'a str, Option<Id>)>);

impl Change<'_> {
    fn touches(&self, name: &(Id, &str)) -> bool {
        self.0.iter().any(|(folder, of, _)| (*folder, *of) == *name)
    }
}

/// All files and folders that ever were, and which changes of names are not made to last yet.
pub struct Disk<'a> {
    nodes: Vec<Node<'a>>,
    /// Whose an inode is now; numbers are given again.
    inodes: HashMap<u64, Id>,
    waiting: Vec<Change<'a>>,
}

/// The folder in which the state folder stands.
const ABOVE: Id = 0;

impl<'a> Disk<'a> {
    /// Nothing yet, in the folder with this inode.
    pub fn new(above: u64) -> Self {
        let body = Body::Folder { now: Names::new(), lasting: Names::new() };
        let nodes = vec![Node { body, place: None }];
        Self { nodes, inodes: HashMap::from([(above, ABOVE)]), waiting: Vec::new() }
    }

    /// Takes one record in.
    pub fn take(&mut self, record: &Record<'a>) {
        match *record {
            Record::FileMade { folder, inode, name } => {
                self.made(folder, Some(inode), name, Body::File(Data::default()));
            }
            Record::FolderMade { folder, inode, name } => {
                let body = Body::Folder { now: Names::new(), lasting: Names::new() };
                self.made(folder, Some(inode), name, body);
            }
            Record::LinkMade { folder, name, to } => self.made(folder, None, name, Body::Link(to)),
            Record::SecondName { folder, inode, name } => {
                let (folder, node) = (self.id(folder), self.id(inode));
                self.change(Change(vec![(folder, name, Some(node))]));
            }
            Record::Written { inode, offset, data } => self.data(inode).write(offset, data),
            Record::Cut { inode, size } => self.data(inode).cut(size),
            Record::Renamed { folder, name, to, new } => {
                let (from, to) = (self.id(folder), self.id(to));
                let node = self.named(from, name);
                self.change(Change(vec![(from, name, None), (to, new, Some(node))]));
            }
            Record::Removed { folder, name } => {
                let folder = self.id(folder);
                self.change(Change(vec![(folder, name, None)]));
            }
            Record::Synced { inode } => self.sync(inode),
            Record::Mark(_) => {}
        }
    }

    /// The path of a file or folder, from the folder above on: `state/db/rlhfd.db`.
    pub fn path(&self, inode: u64) -> String {
        let mut names = Vec::new();
        let mut at = self.id(inode);
        while let Some((folder, name)) = self.nodes[at].place {
            names.insert(0, name);
            at = folder;
        }
        names.join("/")
    }

    fn id(&self, inode: u64) -> Id {
        *self.inodes.get(&inode).unwrap_or_else(|| panic!("inode {inode} was never made"))
    }

    fn named(&self, folder: Id, name: &str) -> Id {
        let Body::Folder { now, .. } = &self.nodes[folder].body else { panic!("no folder") };
        *now.get(name).unwrap_or_else(|| panic!("{name} was never made"))
    }

    fn data(&mut self, inode: u64) -> &mut Data<'a> {
        let id = self.id(inode);
        let Body::File(data) = &mut self.nodes[id].body else { panic!("inode {inode}: no file") };
        data
    }

    fn made(&mut self, folder: u64, inode: Option<u64>, name: &'a str, body: Body<'a>) {
        let node = self.nodes.len();
        self.nodes.push(Node { body, place: None });
        if let Some(inode) = inode {
            self.inodes.insert(inode, node);
        }
        let folder = self.id(folder);
        self.change(Change(vec![(folder, name, Some(node))]));
    }

    fn change(&mut self, change: Change<'a>) {
        for (folder, name, node) in &change.0 {
            let Body::Folder { now, .. } = &mut self.nodes[*folder].body else { continue };
            put(now, name, *node);
            if let Some(node) = node {
                self.nodes[*node].place = Some((*folder, name));
            }
        }
        self.waiting.push(change);
    }

    fn sync(&mut self, inode: u64) {
        let id = self.id(inode);
        match &mut self.nodes[id].body {
            Body::File(data) => data.sync(),
            Body::Folder { .. } => self.sync_folder(id),
            Body::Link(_) => {}
        }
    }

    /// Its changes, and with a rename from elsewhere what that name saw before.
    fn sync_folder(&mut self, id: Id) {
        let mut names: HashSet<(Id, &str)> = HashSet::new();
        let mut lasts = vec![false; self.waiting.len()];
        for (at, change) in self.waiting.iter().enumerate().rev() {
            let own = change.0.iter().any(|(folder, _, _)| *folder == id);
            if own || names.iter().any(|name| change.touches(name)) {
                lasts[at] = true;
                names.extend(change.0.iter().map(|(folder, name, _)| (*folder, *name)));
            }
        }
        let waiting = std::mem::take(&mut self.waiting);
        for (change, lasts) in waiting.into_iter().zip(lasts) {
            if !lasts {
                self.waiting.push(change);
                continue;
            }
            for (folder, name, node) in change.0 {
                let Body::Folder { lasting, .. } = &mut self.nodes[folder].body else { continue };
                put(lasting, name, node);
            }
        }
    }

    /// Writes below `target` what might be left after a power cut now. Nothing may stand there.
    pub fn cut_off(&self, target: &Path, chance: &mut Chance) {
        let mut folders: HashMap<Id, Names> = HashMap::new();
        for (id, node) in self.nodes.iter().enumerate() {
            if let Body::Folder { lasting, .. } = &node.body {
                folders.insert(id, lasting.clone());
            }
        }
        let share = chance.share();
        let mut stuck: Vec<(Id, &str)> = Vec::new();
        for change in &self.waiting {
            if stuck.iter().any(|name| change.touches(name)) || !chance.falls(share) {
                stuck.extend(change.0.iter().map(|(folder, name, _)| (*folder, *name)));
                continue;
            }
            for (folder, name, node) in &change.0 {
                put(folders.get_mut(folder).expect("a folder"), name, *node);
            }
        }
        self.lay_out(&folders[&ABOVE], target, &|id| folders[&id].clone(), chance);
    }

    /// Writes below `target` what the running system sees now.
    pub fn as_it_is(&self, target: &Path) {
        let now = |id: Id| match &self.nodes[id].body {
            Body::Folder { now, .. } => now.clone(),
            Body::File(_) | Body::Link(_) => Names::new(),
        };
        self.lay_out(&now(ABOVE), target, &now, &mut Chance::all());
    }

    fn lay_out(
        &self,
        names: &Names,
        folder: &Path,
        inside: &dyn Fn(Id) -> Names,
        chance: &mut Chance,
    ) {
        for (name, id) in names {
            let path = folder.join(name);
            match &self.nodes[*id].body {
                Body::File(data) => fs::write(&path, data.cut_off(chance)).expect("a file"),
                Body::Folder { .. } => {
                    fs::create_dir(&path).expect("a folder");
                    self.lay_out(&inside(*id), &path, inside, chance);
                }
                Body::Link(to) => std::os::unix::fs::symlink(to, &path).expect("a link"),
            }
        }
    }
}

fn put(names: &mut Names, name: &str, node: Option<Id>) {
    match node {
        Some(node) => names.insert(name.to_owned(), node),
        None => names.remove(name),
    };
}
