/* Loaded into a daemon before its libraries: writes what its heap holds into the file that HEAP_WATCH names, some times a
 * second, as "<bytes in use> <bytes held>". The kernel's figures tell what the heap holds; a leak shows first in what is
 * in use, long before a page more is held. Its children do not load it. */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static char path[4096];
static char aside[4104];

static void *watch(void *unused) {
    const struct timespec pause = {.tv_sec = 0, .tv_nsec = 50 * 1000 * 1000};
    for (;;) {
        struct mallinfo2 heap = mallinfo2();
        FILE *file = fopen(aside, "w");
        if (file != NULL) {
            fprintf(file, "%zu %zu\n", heap.uordblks + heap.hblkhd, heap.arena + heap.hblkhd);
            fclose(file);
            rename(aside, path);
        }
        nanosleep(&pause, NULL);
    }
    return unused;
}

__attribute__((constructor)) static void begin(void) {
    const char *named = getenv("HEAP_WATCH");
    pthread_t thread;
    if (named == NULL || strlen(named) >= sizeof path) return;
    strcpy(path, named);
    snprintf(aside, sizeof aside, "%s.new", path);
    unsetenv("HEAP_WATCH");
    unsetenv("LD_PRELOAD");
    if (pthread_create(&thread, NULL, watch, NULL) == 0) pthread_detach(thread);
}
