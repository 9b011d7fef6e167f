/* Launches loops from several threads, and from forked children, and checks that every task ran
 * once. Compiled together with the runtime that it tests: launches LAUNCHES THREADS FORKS */

#include RUNTIME
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum { CALLERS = 3, MOST_WANTED = 8, SCRATCH = 1000 };

static int launches, forks;

typedef struct {
    int ran[MOST_THREADS * TASKS_PER_THREAD];
    int fails;
} Loop;

static int body(void *data, unsigned char *scratch, int task, int tasks) {
    Loop *loop = data;
    if (tasks == 1) { /* alone: the one task is all of the loop */
        for (int i = 0; i < MOST_THREADS * TASKS_PER_THREAD; i++) loop->ran[i]++;
    } else {
        for (int i = task; i < MOST_THREADS * TASKS_PER_THREAD; i += tasks) loop->ran[i]++;
    }
    memset(scratch, task, SCRATCH); /* a data race where two threads have the same */
    return loop->fails && task == tasks - 1 ? 7 : 0;
}

static void *call(void *argument) {
    static _Thread_local Loop loop;
    static _Thread_local unsigned char scratch[MOST_WANTED * SCRATCH];
    int wanted = (int)(uintptr_t)argument;
    for (int i = 1; i <= launches; i++) {
        secateur_context context = {NULL, 1 + (wanted + i) % wanted, scratch, SCRATCH, NULL, NULL};
        loop.fails = i % 10 == 0;
        int status = secateur_share_threads_1(&context, body, &loop);
        if (status != (loop.fails ? 7 : 0)) exit(2);
        for (int k = 0; k < MOST_THREADS * TASKS_PER_THREAD; k += 97) {
            if (loop.ran[k] != i) exit(3);
        }
    }
    return NULL;
}

int main(int count, char **words) {
    (void)count;
    launches = atoi(words[1]);
    int wanted = atoi(words[2]);
    forks = atoi(words[3]);
    pthread_t callers[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        pthread_create(&callers[i], NULL, call, (void *)(uintptr_t)wanted);
    }
    for (int i = 0; i < forks; i++) {
        usleep(300);
        pid_t child = fork();
        if (child == 0) {
            alarm(20);
            launches = 20;
            call((void *)(uintptr_t)wanted);
            exit(workers > 0 ? 0 : 4); /* it has workers of its own, which this ends */
        }
        int status;
        waitpid(child, &status, 0);
        if (status != 0) {
            printf("child %d: status %x\n", i, status);
            return 5;
        }
    }
    for (int i = 0; i < CALLERS; i++) pthread_join(callers[i], NULL);
    return 0;
}
