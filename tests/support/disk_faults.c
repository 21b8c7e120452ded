/* A disk and a clock that fail on order: preloaded (LD_PRELOAD) into the daemon and its workers by tests.
 *
 * Comes in: the file that DISK_FAULTS_ORDERS names, key=value lines, read again at every call, so that a
 * test orders something by writing it anew. Only files below DISK_FAULTS_ROOT are touched. Keys:
 *
 *   fail=KINDS:ERRNO:TIMES:PART   calls of these kinds on paths with PART in them fail so many times in all;
 *                                 kinds, joined by +: write sync create rename; TIMES 0: while it stands
 *   slow=KINDS:MS:PART            such calls take so long; the kind `open` too, which never fails; several
 *                                 of these stand apart by spaces
 *   clock_ms=-3600000             how far the clock of the day is off
 *
 * Goes out: in DISK_FAULTS_ORDERS.hits a byte for each call that failed; in DISK_FAULTS_ORDERS.names a line
 * for each rename and for each sync of a folder, by which a test undoes what a power cut would have undone.
 * What calls the kernel without the C library (rustix) is not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { ORDERS = 1024, PATH = 4096 };

/* The C library's own function of the name of the one that stands here. */
#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* ── the files of the test ────────────────────────────────────────────────────────────────────── */

static int open_file(const char *path, int flags) {
    static int (*real)(const char *, int, ...);
    if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    return real(path, flags | O_CLOEXEC, 0600);
}

static ssize_t write_file(int file, const void *bytes, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    return real(file, bytes, size);
}

/* The value of a key of the orders; as a rule nothing is ordered, and there is no file. */
static int ordered(const char *key, char *value, size_t size) {
    const char *path = getenv("DISK_FAULTS_ORDERS");
    int file = path ? open_file(path, O_RDONLY) : -1;
    if (file < 0) return 0;
    char text[ORDERS], *rest = text, *line;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    text[length > 0 ? length : 0] = 0;
    while ((line = strsep(&rest, "\n"))) {
        size_t name = strlen(key);
        if (strncmp(line, key, name) || line[name] != '=') continue;
        snprintf(value, size, "%s", line + name + 1);
        return 1;
    }
    return 0;
}

static void append(const char *end, const char *text) {
    char path[PATH];
    snprintf(path, sizeof path, "%s.%s", getenv("DISK_FAULTS_ORDERS"), end);
    int file = open_file(path, O_WRONLY | O_APPEND | O_CREAT);
    if (file < 0) return;
    /* A line that is lost makes a test fail that should not, and is seen. */
    if (write_file(file, text, strlen(text)) < 0) abort();
    close(file);
}

static long hits(void) {
    char path[PATH];
    struct stat facts;
    snprintf(path, sizeof path, "%s.hits", getenv("DISK_FAULTS_ORDERS"));
    return stat(path, &facts) ? 0 : (long)facts.st_size;
}

/* ── what is met ──────────────────────────────────────────────────────────────────────────────── */

static int is_ours(const char *path) {
    const char *root = getenv("DISK_FAULTS_ROOT");
    return root && !strncmp(path, root, strlen(root));
}

static int path_of(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH - 1);
    path[length > 0 ? length : 0] = 0;
    return length > 0;
}

/* Whether an order KINDS:NUMBER:REST is about this call, with its number and what follows. */
static int is_about(char *order, const char *kind, long *number, char **rest) {
    char *kinds = strsep(&order, ":"), *count = strsep(&order, ":"), *word;
    if (!count || !order) return 0;
    *number = atol(count);
    *rest = order;
    while ((word = strsep(&kinds, "+")))
        if (!strcmp(word, kind)) return 1;
    return 0;
}

/* Whether a call of this kind on this path is to fail; then errno says how. It may take its time too. */
static int fails(const char *kind, const char *path) {
    char order[ORDERS], *rest;
    long number;
    int before = errno, failed = 0;
    if (is_ours(path)) {
        char *all = ordered("slow", order, sizeof order) ? order : NULL, *one;
        while ((one = strsep(&all, " ")))
            if (is_about(one, kind, &number, &rest) && strstr(path, rest)) usleep((useconds_t)number * 1000);
        if (ordered("fail", order, sizeof order) && is_about(order, kind, &number, &rest)) {
            char *times = strsep(&rest, ":");
            failed = rest && strstr(path, rest) && (!atol(times) || hits() < atol(times));
        }
    }
    if (failed) append("hits", "x");
    errno = failed ? (int)number : before;
    return failed;
}

static int fails_at(const char *kind, int file) {
    char orders[8], path[PATH];
    int before = errno;
    /* Sockets and pipes are written far more often than anything is ordered. */
    int any = ordered("fail", orders, sizeof orders) || ordered("slow", orders, sizeof orders);
    int known = any && path_of(file, path);
    errno = before;
    return known && fails(kind, path);
}

/* ── calls ────────────────────────────────────────────────────────────────────────────────────── */

#define OPEN(name, PARAMETERS, ARGUMENTS) \
    int name PARAMETERS { \
        REAL(name); \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
        if (fails(flags & O_CREAT ? "create" : "open", path)) return -1; \
        return real ARGUMENTS; \
    }
OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))
OPEN(openat64, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))

#define AT_FILE(kind, Result, name, PARAMETERS, ARGUMENTS) \
    Result name PARAMETERS { \
        REAL(name); \
        return fails_at(kind, file) ? -1 : real ARGUMENTS; \
    }
AT_FILE("write", ssize_t, write, (int file, const void *bytes, size_t size), (file, bytes, size))
AT_FILE("write", ssize_t, pwrite, (int file, const void *bytes, size_t size, off_t at), (file, bytes, size, at))
AT_FILE("write", ssize_t, pwrite64, (int file, const void *bytes, size_t size, off64_t at), (file, bytes, size, at))
AT_FILE("write", ssize_t, writev, (int file, const struct iovec *parts, int count), (file, parts, count))
AT_FILE("write", int, ftruncate, (int file, off_t size), (file, size))
AT_FILE("write", int, ftruncate64, (int file, off64_t size), (file, size))

ssize_t copy_file_range(int from, off64_t *at, int file, off64_t *to, size_t size, unsigned flags) {
    REAL(copy_file_range);
    return fails_at("write", file) ? -1 : real(from, at, file, to, size, flags);
}

static void tell_synced(int file) {
    struct stat facts;
    char path[PATH], line[PATH + 8];
    if (fstat(file, &facts) || !S_ISDIR(facts.st_mode) || !path_of(file, path) || !is_ours(path)) return;
    snprintf(line, sizeof line, "synced\t%s\n", path);
    append("names", line);
}

int fsync(int file) {
    REAL(fsync);
    if (fails_at("sync", file)) return -1;
    int done = real(file);
    if (!done) tell_synced(file);
    return done;
}
AT_FILE("sync", int, fdatasync, (int file), (file))

int rename(const char *from, const char *to) {
    REAL(rename);
    char line[2 * PATH + 16];
    if (fails("rename", to)) return -1;
    int done = real(from, to);
    if (!done && is_ours(to)) {
        snprintf(line, sizeof line, "renamed\t%s\t%s\n", from, to);
        append("names", line);
    }
    return done;
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return fails("create", path) ? -1 : real(path, mode);
}

/* ── the clock of the day ─────────────────────────────────────────────────────────────────────── */

static long long off_ms(void) {
    char value[32];
    int before = errno;
    long long off = ordered("clock_ms", value, sizeof value) ? atoll(value) : 0;
    errno = before;
    return off;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int done = real(clock, now);
    if (!done && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        long long ns = now->tv_nsec + (off_ms() % 1000) * 1000000LL;
        long long carried = ns < 0 ? -1 : ns >= 1000000000LL;
        now->tv_sec += (time_t)(off_ms() / 1000 + carried);
        now->tv_nsec = (long)(ns - carried * 1000000000LL);
    }
    return done;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec fine;
    (void)zone;
    int done = clock_gettime(CLOCK_REALTIME, &fine);
    if (!done) *now = (struct timeval){fine.tv_sec, fine.tv_nsec / 1000};
    return done;
}

time_t time(time_t *out) {
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    if (out) *out = fine.tv_sec;
    return fine.tv_sec;
}
