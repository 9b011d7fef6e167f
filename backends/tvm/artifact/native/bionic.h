/* What threads.c needs of Android's libc, bionic, whose headers only its NDK has. Its mutexes and
 * conditions are as large as these at most, and initialized to zeros; sets of signals are smaller. */

typedef long pthread_t;
typedef int pid_t;
typedef union {
    long long alignment;
    char room[64];
} pthread_mutex_t, pthread_cond_t;
typedef struct {
    unsigned long room[32];
} sigset_t;

#define PTHREAD_MUTEX_INITIALIZER {0}
#define PTHREAD_COND_INITIALIZER {0}
#define SIG_SETMASK 2

int pthread_create(pthread_t *, const void *, void *(*)(void *), void *);
int pthread_join(pthread_t, void **);
int pthread_mutex_lock(pthread_mutex_t *);
int pthread_mutex_unlock(pthread_mutex_t *);
int pthread_cond_wait(pthread_cond_t *, pthread_mutex_t *);
int pthread_cond_signal(pthread_cond_t *);
int pthread_cond_broadcast(pthread_cond_t *);
int pthread_sigmask(int, const sigset_t *, sigset_t *);
int sigfillset(sigset_t *);
pid_t getpid(void);
