/* Kills the process at its CRASH_AT-th change of a file under CRASH_UNDER, before or after it.
   Each change counts twice, once before and once after; CRASH_LOG gets a line for each.

   cc -shared -fPIC -o crash.so crash.c -ldl; LD_PRELOAD=./crash.so CRASH_UNDER=… CRASH_AT=… */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long seen;

static int under(const char *path) {
    const char *folder = getenv("CRASH_UNDER");
    char whole[8192];
    if (!folder || !path) return 0;
    if (path[0] != '/') { /* the program's own relative names */
        char here[4096];
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(whole, sizeof whole, "%s/%s", here, path);
        path = whole;
    }
    return !strncmp(path, folder, strlen(folder));
}

static int under_at(int folder, const char *path, char *whole, size_t size) {
    char link[64], base[4096];
    if (!path) return 0;
    if (path[0] == '/' || folder == AT_FDCWD) {
        snprintf(whole, size, "%s", path);
        return under(whole);
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t n = readlink(link, base, sizeof base - 1);
    if (n <= 0) return 0;
    base[n] = 0;
    snprintf(whole, size, "%s/%s", base, path);
    return under(whole);
}

static int open_under(int fd, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, size - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return under(path);
}

static void moment(const char *call, const char *when, const char *path) {
    int kept = errno;
    long number = atomic_fetch_add(&seen, 1);
    const char *log = getenv("CRASH_LOG"), *at = getenv("CRASH_AT");
    if (log) {
        char line[8192];
        int n = snprintf(line, sizeof line, "%s %s %s\n", when, call, path);
        int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (fd >= 0) {
            syscall(SYS_write, fd, line, n);
            close(fd);
        }
    }
    if (at && number == atol(at)) kill(getpid(), SIGKILL);
    errno = kept;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_FD(type, name, params, args)                      \
    type name params {                                       \
        static __typeof__(&name) real;                       \
        char path[4096];                                     \
        if (!real) real = REAL(name);                        \
        if (!open_under(fd, path, sizeof path)) return real args; \
        moment(#name, "before", path);                       \
        type result = real args;                             \
        moment(#name, "after", path);                        \
        return result;                                       \
    }
#define ON_PATH(name, params, args)                          \
    int name params {                                        \
        static __typeof__(&name) real;                       \
        if (!real) real = REAL(name);                        \
        if (!under(path)) return real args;                  \
        moment(#name, "before", path);                       \
        int result = real args;                              \
        moment(#name, "after", path);                        \
        return result;                                       \
    }

ON_FD(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
ON_FD(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
ON_FD(int, fsync, (int fd), (fd))
ON_FD(int, fdatasync, (int fd), (fd))
ON_FD(int, ftruncate64, (int fd, off64_t size), (fd, size))
ON_PATH(rename, (const char *path, const char *to), (path, to))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(rmdir, (const char *path), (path))
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH(truncate64, (const char *path, off64_t size), (path, size))

/* shutil.rmtree removes below open folders */
int unlinkat(int folder, const char *path, int flags) {
    static __typeof__(&unlinkat) real;
    char whole[8192];
    if (!real) real = REAL(unlinkat);
    if (!under_at(folder, path, whole, sizeof whole)) return real(folder, path, flags);
    moment("unlinkat", "before", whole);
    int result = real(folder, path, flags);
    moment("unlinkat", "after", whole);
    return result;
}

/* a file that comes into being, or is emptied */
#define ON_OPEN(name)                                            \
    int name(const char *path, int flags, ...) {                 \
        static int (*real)(const char *, int, ...);              \
        va_list list;                                            \
        va_start(list, flags);                                   \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
        va_end(list);                                            \
        if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        if (!(flags & (O_CREAT | O_TRUNC)) || !under(path)) return real(path, flags, mode); \
        moment("open", "before", path);                          \
        int result = real(path, flags, mode);                    \
        moment("open", "after", path);                           \
        return result;                                           \
    }
ON_OPEN(open64)
