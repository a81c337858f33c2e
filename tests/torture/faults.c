/* Preloaded into a command: counts what changes files below one folder, and at a chosen operation
 * kills the process, or lets it or all that follow fail, or writes half. Driven by faults.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum action { COUNT, KILL, FAIL_ONCE, FAIL_FROM, SHORT_FROM, SLOW };
static char prefix[PATH_MAX];
static size_t prefix_length;
static int action, error_number;
static long limit, counted;
static char hit[PATH_MAX];
static __thread int is_inside;

void faults_arm(const char *folder, int what, long at, int number) {
  snprintf(prefix, sizeof prefix, "%s", folder);
  prefix_length = strlen(prefix);
  action = what, limit = at, error_number = number, counted = 0, hit[0] = 0;
}
long faults_counted(void) { return counted; }
const char *faults_hit(void) { return hit; }

/* Returns whether the operation is to fail (1), to be cut short (2), or to be done (0). */
static int ask(const char *path, int can_be_short) {
  if (!prefix_length || strncmp(path, prefix, prefix_length) != 0) return 0;
  long number = __sync_add_and_fetch(&counted, 1);
  if (number < limit || action == COUNT) return 0;
  if (number == limit) snprintf(hit, sizeof hit, "%s", path);
  switch (action) {
    case KILL:
      if (number == limit) kill(getpid(), SIGKILL);
      return 0;
    case FAIL_ONCE: return number == limit;
    case FAIL_FROM: return 1;
    case SHORT_FROM: return can_be_short ? 2 : 0;
    case SLOW: {
      struct timespec wait = {0, 2000000};
      nanosleep(&wait, NULL);
    }
  }
  return 0;
}

static int ask_at(int folder, const char *name, int can_be_short) {
  if (!prefix_length || is_inside) return 0;
  char path[PATH_MAX], link[64], base[PATH_MAX];
  is_inside = 1;
  if (name != NULL && name[0] == '/') {
    snprintf(path, sizeof path, "%s", name);
  } else {
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, base, sizeof base - 1);
    base[length < 0 ? 0 : length] = 0;
    if (name == NULL) snprintf(path, sizeof path, "%s", base);
    else snprintf(path, sizeof path, "%.2000s/%.2000s", base, name);
  }
  int answer = ask(path, can_be_short);
  is_inside = 0;
  return answer;
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL do { errno = error_number; return -1; } while (0)

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && ask_at(AT_FDCWD, path, 0) == 1) FAIL; \
    return real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)
#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    REAL(name); \
    va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && ask_at(folder, path, 0) == 1) FAIL; \
    return real(folder, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *bytes, size_t count) {
  REAL(write);
  int answer = ask_at(file, NULL, 1);
  if (answer == 1) FAIL;
  return real(file, bytes, answer == 2 && count > 1 ? count / 2 : count);
}
ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t place) {
  REAL(pwrite64);
  int answer = ask_at(file, NULL, 1);
  if (answer == 1) FAIL;
  return real(file, bytes, answer == 2 && count > 1 ? count / 2 : count, place);
}
int fsync(int file) { REAL(fsync); if (ask_at(file, NULL, 0) == 1) FAIL; return real(file); }
int rename(const char *from, const char *to) {
  REAL(rename); if (ask_at(AT_FDCWD, to, 0) == 1) FAIL; return real(from, to);
}
int link(const char *from, const char *to) {
  REAL(link); if (ask_at(AT_FDCWD, to, 0) == 1) FAIL; return real(from, to);
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
  REAL(linkat); if (ask_at(b, to, 0) == 1) FAIL; return real(a, from, b, to, flags);
}
int unlink(const char *path) {
  REAL(unlink); if (ask_at(AT_FDCWD, path, 0) == 1) FAIL; return real(path);
}
int mkdir(const char *path, mode_t mode) {
  REAL(mkdir); if (ask_at(AT_FDCWD, path, 0) == 1) FAIL; return real(path, mode);
}
int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
  REAL(utimensat); if (ask_at(folder, path, 0) == 1) FAIL; return real(folder, path, times, flags);
}
