/* A disk that fails now and then: one of EIO_ONE_IN calls on files below EIO_BELOW ends with EIO. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int unlucky(void) {
    static __thread unsigned int state;
    const char *one_in = getenv("EIO_ONE_IN");
    if (one_in == NULL) return 0;
    if (state == 0) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        state = ((unsigned int)now.tv_nsec ^ ((unsigned int)getpid() << 8)) | 1;
    }
    return rand_r(&state) % (unsigned int)atoi(one_in) == 0;
}

static int below(const char *path) {
    const char *root = getenv("EIO_BELOW");
    return root != NULL && path != NULL && strncmp(path, root, strlen(root)) == 0;
}

static int fails(int fd) {
    char link[64], path[4096];
    if (!unlucky()) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(bad, value) do { if (bad) { errno = EIO; return value; } } while (0)

ssize_t read(int fd, void *to, size_t count) { FAIL(fails(fd), -1); return REAL(read)(fd, to, count); }
ssize_t pread64(int fd, void *to, size_t count, off64_t at) { FAIL(fails(fd), -1); return REAL(pread64)(fd, to, count, at); }
ssize_t preadv64(int fd, const struct iovec *to, int count, off64_t at) { FAIL(fails(fd), -1); return REAL(preadv64)(fd, to, count, at); }
ssize_t write(int fd, const void *of, size_t count) { FAIL(fails(fd), -1); return REAL(write)(fd, of, count); }
ssize_t pwrite64(int fd, const void *of, size_t count, off64_t at) { FAIL(fails(fd), -1); return REAL(pwrite64)(fd, of, count, at); }
int fsync(int fd) { FAIL(fails(fd), -1); return REAL(fsync)(fd); }
DIR *opendir(const char *path) { FAIL(below(path) && unlucky(), NULL); return REAL(opendir)(path); }
struct dirent64 *readdir64(DIR *of) { FAIL(fails(dirfd(of)), NULL); return REAL(readdir64)(of); }
int stat64(const char *path, struct stat64 *to) { FAIL(below(path) && unlucky(), -1); return REAL(stat64)(path, to); }
int fstatat64(int fd, const char *path, struct stat64 *to, int flags) { FAIL(below(path) && unlucky(), -1); return REAL(fstatat64)(fd, path, to, flags); }
int lstat64(const char *path, struct stat64 *to) { FAIL(below(path) && unlucky(), -1); return REAL(lstat64)(path, to); }

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    FAIL(below(path) && unlucky(), -1);
    return REAL(open64)(path, flags, mode);
}
