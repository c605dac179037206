// Compiles many kernels at once. NVRTC compiles concurrently on threads of one process.
#include "cubin_cache.h"

#include <stdio.h>
#include <unistd.h>

typedef struct {
    kt__cubins *cubins;
    kt__compile_job *jobs;
    int count, next, finished;
    void (*done)(void *, int);
    void *context;
    pthread_mutex_t lock;
} queue;

static void *work(void *argument)
{
    queue *q = argument;
    pthread_mutex_lock(&q->lock);
    while (q->next < q->count) {
        kt__compile_job *job = &q->jobs[q->next++];
        pthread_mutex_unlock(&q->lock);
        job->status = kt__cubins_get(q->cubins, job->kernel, job->arch, &job->cubin, &job->origin);
        if (job->status)
            snprintf(job->message, sizeof job->message, "%s", kt_message());
        pthread_mutex_lock(&q->lock);
        q->finished++;
        if (q->done)
            q->done(q->context, q->finished);
    }
    pthread_mutex_unlock(&q->lock);
    return 0;
}

kt_status kt__compile_all(kt__cubins *cubins, kt__compile_job *jobs, int count, int threads, void (*done)(void *, int), void *context)
{
    enum { MOST = 64 };
    pthread_t others[MOST];
    int started = 0;
    queue q = {.cubins = cubins, .jobs = jobs, .count = count, .done = done, .context = context};
    pthread_mutex_init(&q.lock, 0);
    if (threads <= 0)
        threads = (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (threads > count)
        threads = count;
    // The caller is one of the threads, so that the work is done even where none can be started.
    while (started < threads - 1 && started < MOST && !pthread_create(&others[started], 0, work, &q))
        started++;
    work(&q);
    for (int i = 0; i < started; i++)
        pthread_join(others[i], 0);
    pthread_mutex_destroy(&q.lock);
    for (int i = 0; i < count; i++)
        if (jobs[i].status)
            return kt__fail(jobs[i].status, "%s", jobs[i].message);
    return KT_OK;
}
