/* A library in front of libc's: it writes down, in order, what a process changes below one folder.
 *
 * In: LD_PRELOAD, RLHFD_DISK_LOG (the file that records are added to), RLHFD_DISK_ROOT (the folder).
 * RLHFD_DISK_DIES, if set, is a name: the first process that renames something to it dies right after.
 * Out: one record for each change and each sync that succeeded, after it was made; several processes
 * may share a log. Files and folders are named by their inode, entries by folder and name, so that a
 * rename of what lies above changes nothing. SQLite's shared memory (-shm) is left out: it is mapped,
 * and means nothing after a crash. What is changed by a call that is missing here is found by whoever
 * replays the log and compares. Calls are made by their numbers: no other library is looked up.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* `tests/crash/log.rs` reads these. */
enum what {
    FILE_MADE = 1, /* a: folder, b: inode, name */
    FOLDER_MADE,   /* a: folder, b: inode, name */
    LINK_MADE,     /* a: folder, name, data: where it leads */
    SECOND_NAME,   /* a: folder, b: inode, name */
    WRITTEN,       /* a: inode, b: offset, data */
    CUT,           /* a: inode, b: new size */
    RENAMED,       /* a: folder, b: new folder, name, data: new name */
    REMOVED,       /* a: folder, name */
    SYNCED,        /* a: inode */
    MARK,          /* name */
};

struct record {
    uint32_t what;
    uint32_t name_bytes;
    uint64_t a, b;
    uint64_t data_bytes;
};

static int log_file = -1;
static const char *root;
static size_t root_bytes;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("RLHFD_DISK_LOG");
    root = getenv("RLHFD_DISK_ROOT");
    if (!path || !root) return;
    root_bytes = strlen(root);
    int low = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    /* Out of the way of descriptors with a meaning of their own. */
    log_file = fcntl(low, F_DUPFD_CLOEXEC, 700);
    syscall(SYS_close, low);
    if (log_file < 0) abort();
}

/* One call, and so one piece of the log, whoever else writes to it. */
static void put(enum what what, uint64_t a, uint64_t b, const char *name, const void *data,
                size_t data_bytes) {
    int kept = errno;
    size_t name_bytes = name ? strlen(name) : 0;
    struct record record = {what, name_bytes, a, b, data_bytes};
    struct iovec parts[3] = {
        {&record, sizeof record}, {(void *)name, name_bytes}, {(void *)data, data_bytes}};
    ssize_t whole = sizeof record + name_bytes + data_bytes;
    /* A log with a hole proves nothing. */
    if (syscall(SYS_writev, log_file, parts, 3) != whole) abort();
    errno = kept;
}

static int below_root(const char *path) {
    if (strncmp(path, root, root_bytes) || (path[root_bytes] && path[root_bytes] != '/')) return 0;
    size_t bytes = strlen(path);
    return bytes < 4 || strcmp(path + bytes - 4, "-shm");
}

/* The folder that the root lies in: what syncs it makes the root's own name last. */
static int above_root(const char *path) {
    size_t bytes = strlen(path);
    return !strncmp(path, root, bytes) && root[bytes] == '/' && !strchr(root + bytes + 1, '/');
}

/* Where an open descriptor lies. */
static int path_of(int file, char path[PATH_MAX]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t bytes = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (bytes < 0) return 0;
    path[bytes] = 0;
    return 1;
}

/* Whether a descriptor is a file or folder below the root, and its inode. */
static int ours(int file, uint64_t *inode) {
    if (log_file < 0) return 0;
    int kept = errno, found = 0;
    struct stat facts;
    char path[PATH_MAX];
    if (!fstat(file, &facts) && (S_ISREG(facts.st_mode) || S_ISDIR(facts.st_mode)) &&
        path_of(file, path) && (below_root(path) || above_root(path))) {
        *inode = facts.st_ino;
        found = 1;
    }
    errno = kept;
    return found;
}

/* An entry: its folder's inode, and its name. */
struct entry {
    uint64_t folder;
    char name[NAME_MAX + 1];
};

static int entry_of(int at, const char *path, struct entry *entry) {
    if (log_file < 0 || strlen(path) >= PATH_MAX) return 0;
    int kept = errno, found = 0;
    char above[PATH_MAX], whole[PATH_MAX + NAME_MAX + 2];
    struct stat facts;
    strcpy(above, path);
    size_t end = strlen(above);
    while (end > 1 && above[end - 1] == '/') above[--end] = 0;
    char *slash = strrchr(above, '/');
    const char *name = slash ? slash + 1 : above;
    if (strlen(name) <= NAME_MAX) {
        strcpy(entry->name, name);
        if (slash) slash[slash == above] = 0;
        int folder = syscall(SYS_openat, at, slash ? above : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (folder >= 0 && !fstat(folder, &facts) && path_of(folder, whole)) {
            entry->folder = facts.st_ino;
            strcat(strcat(whole, "/"), entry->name);
            found = below_root(whole);
        }
        if (folder >= 0) syscall(SYS_close, folder);
    }
    errno = kept;
    return found;
}

static int stands(int at, const char *path, struct stat *facts) {
    int kept = errno;
    int found = !fstatat(at, path, facts, AT_SYMLINK_NOFOLLOW);
    errno = kept;
    return found;
}

static int open_noted(int at, const char *path, int flags, mode_t mode) {
    struct entry entry;
    struct stat facts;
    int mine = (flags & (O_CREAT | O_TRUNC)) && entry_of(at, path, &entry);
    int stood = mine && stands(at, path, &facts);
    int file = syscall(SYS_openat, at, path, flags, mode);
    uint64_t inode;
    if (file >= 0 && mine && ours(file, &inode)) {
        if (!stood) put(FILE_MADE, entry.folder, inode, entry.name, 0, 0);
        else if (flags & O_TRUNC) put(CUT, inode, 0, 0, 0, 0);
    }
    return file;
}

#define MODE(flags, mode)                                                                          \
    mode_t mode = 0;                                                                               \
    if (flags & O_CREAT) {                                                                         \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        mode = va_arg(more, mode_t);                                                               \
        va_end(more);                                                                              \
    }

int open(const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_noted(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_noted(AT_FDCWD, path, flags, mode);
}

int openat(int at, const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_noted(at, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...) {
    MODE(flags, mode)
    return open_noted(at, path, flags, mode);
}

/* Data that the kernel copied: read again from where they are now. */
static void put_copied(int file, uint64_t inode, uint64_t offset, size_t bytes) {
    int kept = errno;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    int again = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
    char *data = malloc(bytes);
    if (again < 0 || !data || syscall(SYS_pread64, again, data, bytes, offset) != (ssize_t)bytes)
        abort();
    put(WRITTEN, inode, offset, 0, data, bytes);
    free(data);
    syscall(SYS_close, again);
    errno = kept;
}

ssize_t write(int file, const void *data, size_t bytes) {
    uint64_t inode;
    int mine = ours(file, &inode);
    ssize_t done = syscall(SYS_write, file, data, bytes);
    if (mine && done > 0) put(WRITTEN, inode, lseek(file, 0, SEEK_CUR) - done, 0, data, done);
    return done;
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    uint64_t inode;
    int mine = ours(file, &inode);
    ssize_t done = syscall(SYS_writev, file, parts, count);
    if (mine && done > 0) put_copied(file, inode, lseek(file, 0, SEEK_CUR) - done, done);
    return done;
}

ssize_t pwrite(int file, const void *data, size_t bytes, off_t offset) {
    uint64_t inode;
    int mine = ours(file, &inode);
    ssize_t done = syscall(SYS_pwrite64, file, data, bytes, offset);
    if (mine && done > 0) put(WRITTEN, inode, offset, 0, data, done);
    return done;
}

ssize_t pwrite64(int file, const void *data, size_t bytes, off64_t offset) {
    return pwrite(file, data, bytes, offset);
}

ssize_t copy_file_range(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t bytes,
                        unsigned int flags) {
    uint64_t inode;
    int mine = ours(to, &inode);
    ssize_t done = syscall(SYS_copy_file_range, from, from_offset, to, to_offset, bytes, flags);
    if (mine && done > 0) {
        off64_t end = to_offset ? *to_offset : lseek(to, 0, SEEK_CUR);
        put_copied(to, inode, end - done, done);
    }
    return done;
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t bytes) {
    uint64_t inode;
    int mine = ours(to, &inode);
    ssize_t done = syscall(SYS_sendfile, to, from, offset, bytes);
    if (mine && done > 0) put_copied(to, inode, lseek(to, 0, SEEK_CUR) - done, done);
    return done;
}

ssize_t sendfile(int to, int from, off_t *offset, size_t bytes) {
    return sendfile64(to, from, offset, bytes);
}

int ftruncate(int file, off_t size) {
    uint64_t inode;
    int mine = ours(file, &inode);
    int failed = syscall(SYS_ftruncate, file, size);
    if (mine && !failed) put(CUT, inode, size, 0, 0, 0);
    return failed;
}

int ftruncate64(int file, off64_t size) {
    return ftruncate(file, size);
}

static int synced(long call, int file) {
    uint64_t inode;
    int mine = ours(file, &inode);
    int failed = syscall(call, file);
    if (mine && !failed) put(SYNCED, inode, 0, 0, 0, 0);
    return failed;
}

int fsync(int file) {
    return synced(SYS_fsync, file);
}

int fdatasync(int file) {
    return synced(SYS_fdatasync, file);
}

int mkdirat(int at, const char *path, mode_t mode) {
    struct entry entry;
    struct stat facts;
    int failed = syscall(SYS_mkdirat, at, path, mode);
    if (!failed && entry_of(at, path, &entry) && stands(at, path, &facts))
        put(FOLDER_MADE, entry.folder, facts.st_ino, entry.name, 0, 0);
    return failed;
}

int mkdir(const char *path, mode_t mode) {
    return mkdirat(AT_FDCWD, path, mode);
}

int symlinkat(const char *to, int at, const char *path) {
    struct entry entry;
    int failed = syscall(SYS_symlinkat, to, at, path);
    if (!failed && entry_of(at, path, &entry))
        put(LINK_MADE, entry.folder, 0, entry.name, to, strlen(to));
    return failed;
}

int symlink(const char *to, const char *path) {
    return symlinkat(to, AT_FDCWD, path);
}

int linkat(int from, const char *old, int at, const char *path, int flags) {
    struct entry entry;
    struct stat facts;
    int failed = syscall(SYS_linkat, from, old, at, path, flags);
    if (!failed && entry_of(at, path, &entry) && stands(at, path, &facts))
        put(SECOND_NAME, entry.folder, facts.st_ino, entry.name, 0, 0);
    return failed;
}

int link(const char *old, const char *path) {
    return linkat(AT_FDCWD, old, AT_FDCWD, path, 0);
}

/* Dies between the rename and whatever would have followed, once for all processes of a log. */
static void die_if_ordered(const char *name) {
    const char *wanted = getenv("RLHFD_DISK_DIES");
    char died[PATH_MAX];
    if (!wanted || strcmp(name, wanted)) return;
    snprintf(died, sizeof died, "%s.died", getenv("RLHFD_DISK_LOG"));
    if (syscall(SYS_openat, AT_FDCWD, died, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600) < 0) return;
    put(MARK, 0, 0, "died", 0, 0);
    syscall(SYS_kill, getpid(), SIGKILL);
}

int renameat2(int from, const char *old, int to, const char *path, unsigned int flags) {
    struct entry before, after;
    int mine = entry_of(from, old, &before) && entry_of(to, path, &after);
    int failed = syscall(SYS_renameat2, from, old, to, path, flags);
    if (mine && !failed)
        put(RENAMED, before.folder, after.folder, before.name, after.name, strlen(after.name));
    if (mine && !failed) die_if_ordered(after.name);
    return failed;
}

int renameat(int from, const char *old, int to, const char *path) {
    return renameat2(from, old, to, path, 0);
}

int rename(const char *old, const char *path) {
    return renameat2(AT_FDCWD, old, AT_FDCWD, path, 0);
}

int unlinkat(int at, const char *path, int flags) {
    struct entry entry;
    int mine = entry_of(at, path, &entry);
    int failed = syscall(SYS_unlinkat, at, path, flags);
    if (mine && !failed) put(REMOVED, entry.folder, 0, entry.name, 0, 0);
    return failed;
}

int unlink(const char *path) {
    return unlinkat(AT_FDCWD, path, 0);
}

int rmdir(const char *path) {
    return unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}
