//! Other users of the machine, played by a process that becomes one.
//!
//! Comes in: numbers of a user, a group and further groups; none of them needs a name. Goes out: what that
//! user reads and is answered. Only root can become another user: elsewhere there is nobody, said aloud.

use std::path::Path;
use std::process::{Command, Output};

/// A user with its groups.
#[derive(Debug, Clone, Copy)]
pub struct Other {
    pub uid: u32,
    pub gid: u32,
    /// The supplementary ones.
    pub groups: &'static [u32],
}

/// Becomes the user, then does what the rest of the words say.
///
/// What it needs is loaded before: the interpreter may lie where only we may go.
const BECOME: &str = "import os, socket, sqlite3, sys\n\
    os.setgroups([int(g) for g in sys.argv[3].split(',') if g])\n\
    os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1]))\n\
    os.chdir('/')\n";

const ASK: &str = "s = socket.socket(socket.AF_UNIX); s.settimeout(30); s.connect(sys.argv[4])\n\
    s.sendall(sys.argv[5].encode())\n\
    out = b''\n\
    while True:\n    \
        piece = s.recv(65536)\n    \
        if not piece: break\n    \
        out += piece\n\
    sys.stdout.buffer.write(out)\n";

const READ: &str = "c = sqlite3.connect('file:' + sys.argv[4] + '?mode=ro', uri=True)\n\
    print(c.execute(sys.argv[5]).fetchone()[0])\n";

/// Whether we may become another user.
pub fn may_be_played() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can become another user");
    }
    root
}

impl Other {
    fn does(&self, script: &str, words: [&str; 2]) -> Output {
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        let (uid, gid) = (self.uid.to_string(), self.gid.to_string());
        let mut command = Command::new("python3");
        command.args(["-c", &format!("{BECOME}{script}"), &uid, &gid, &groups.join(",")]);
        command.args(words).output().expect("python3")
    }

    /// A request's status and body; `None` where it could not even connect.
    pub fn asks(
        &self,
        socket: &Path,
        method: &str,
        path: &str,
        body: &str,
    ) -> Option<(u16, String)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let output = self.does(ASK, [&socket.to_string_lossy(), &request]);
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// One number by SQL, with SQLite itself; the error where it may not.
    pub fn reads(&self, database: &Path, sql: &str) -> Result<String, String> {
        let output = self.does(READ, [&database.to_string_lossy(), sql]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}
