/* Preloaded into a Redis server by tests: its disk stalls while $SHIM_DIR/stall exists, and its clock is off by the
   seconds (a signed 64-bit number) in $SHIM_DIR/offset. The monotonic clock is left alone. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset;
static char stall[PATH_MAX];

__attribute__((constructor)) static void begin(void) {
  const char *directory = getenv("SHIM_DIR");
  char path[PATH_MAX];
  int fd;
  if (!directory) return;
  snprintf(stall, sizeof stall, "%s/stall", directory);
  snprintf(path, sizeof path, "%s/offset", directory);
  if ((fd = open(path, O_RDONLY)) < 0) return;
  void *page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
  if (page != MAP_FAILED) offset = page;
  close(fd);
}

static void wait_for_disk(void) {
  while (stall[0] && access(stall, F_OK) == 0) usleep(10000);
}

int fdatasync(int fd) {
  wait_for_disk();
  return (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd) {
  wait_for_disk();
  return (int)syscall(SYS_fsync, fd);
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec real;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &real);
  now->tv_sec = real.tv_sec + (offset ? *offset : 0);
  now->tv_usec = real.tv_nsec / 1000;
  return 0;
}
