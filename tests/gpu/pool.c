#include "pool.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "progress.h"
#include "support.h"

enum { MOST_JOBS = 64 };

typedef struct {
    pid_t pid;        // 0: none
    int to, from;     // tasks to it, results from it
    int task;         // -1: idle
    double deadline;
} worker;

static int transfer(int file, void *data, size_t bytes, int writing)
{
    char *at = data;
    while (bytes) {
        const ssize_t n = writing ? write(file, at, bytes) : read(file, at, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return 0;
        at += n;
        bytes -= (size_t)n;
    }
    return 1;
}

static void lose(void *result, const char *why)
{
    pool_result *r = result;
    r->code = KG_MACHINE;
    snprintf(r->message, sizeof r->message, "%s", why);
}

// Returns whether the process is fit for another task.
static int work(const pool *p, int task, void *result)
{
    pool_result *r = result;
    r->code = p->work(p->context, task, result);
    if (r->code)
        snprintf(r->message, sizeof r->message, "%.2000s", failure);
    return r->code != KG_MACHINE;
}

static void serve(const pool *p, int tasks, int results)
{
    char *result = malloc(p->result_bytes + sizeof(int));
    int task, fit = result != NULL;
    while (fit && transfer(tasks, &task, sizeof task, 0)) {
        memset(result, 0, p->result_bytes);
        fit = work(p, task, result);
        memcpy(result + p->result_bytes, &fit, sizeof fit);
        fit &= transfer(results, result, p->result_bytes + sizeof fit, 1);
    }
    _exit(0);
}

static int start(const pool *p, worker *workers, int index)
{
    worker *w = &workers[index];
    int tasks[2], results[2];
    if (pipe(tasks))
        return 0;
    if (pipe(results)) {
        close(tasks[0]);
        close(tasks[1]);
        return 0;
    }
    fflush(NULL);
    const pid_t pid = fork();
    if (!pid) {
        close(tasks[1]);
        close(results[0]);
        for (int i = 0; i < MOST_JOBS; i++) {
            if (workers[i].pid && i != index) {
                close(workers[i].to);
                close(workers[i].from);
            }
        }
        serve(p, tasks[0], results[1]);
    }
    close(tasks[0]);
    close(results[1]);
    if (pid < 0) {
        close(tasks[1]);
        close(results[0]);
        return 0;
    }
    *w = (worker){pid, tasks[1], results[0], -1, 0};
    return 1;
}

// Ends a worker and, if it had a task, says how the process ended.
static void retire(worker *w, char *why, size_t why_size)
{
    int status = 0;
    close(w->to);
    close(w->from);
    while (waitpid(w->pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFSIGNALED(status))
        snprintf(why, why_size, "its process was ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        snprintf(why, why_size, "its process ended with exit code %d and gave no result", WEXITSTATUS(status));
    *w = (worker){.task = -1};
}

// Takes a result; returns 0 if there is none to come.
static int collect(const pool *p, worker *w)
{
    int fit = 0;
    char *result = p->results + (size_t)w->task * p->result_bytes;
    if (!transfer(w->from, result, p->result_bytes, 0) || !transfer(w->from, &fit, sizeof fit, 0))
        return 0;
    w->task = -1;
    if (!fit) {
        char unused[256];
        retire(w, unused, sizeof unused);
    }
    return 1;
}

static int run_here(const pool *p)
{
    int fit = 1;
    for (int i = 0; i < p->count; i++) {
        void *result = p->results + (size_t)i * p->result_bytes;
        if (fit)
            fit = work(p, i, result);
        else
            lose(result, "not run: the device had failed");
    }
    return KG_OK;
}

static int run_apart(const pool *p, kg_progress *progress)
{
    worker workers[MOST_JOBS] = {0};
    struct pollfd files[MOST_JOBS];
    int next = 0, finished = 0, code = KG_OK;
    const int jobs = p->jobs > MOST_JOBS ? MOST_JOBS : p->jobs;
    void (*old)(int) = signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < MOST_JOBS; i++)
        workers[i].task = -1;
    while (finished < p->count && !code) {
        int running = 0;
        for (int i = 0; i < jobs; i++) {
            worker *w = &workers[i];
            if (w->task < 0 && next < p->count && (w->pid || start(p, workers, i))) {
                w->task = next++;
                w->deadline = now() + p->limit;
                transfer(w->to, &w->task, sizeof w->task, 1); // a worker that is gone shows in its results
            }
            running += w->task >= 0;
            files[i] = (struct pollfd){w->task >= 0 ? w->from : -1, POLLIN, 0};
        }
        if (!running) {
            code = fail(KG_MACHINE, "no process can be started: %s", strerror(errno));
            break;
        }
        poll(files, (nfds_t)jobs, 500);
        for (int i = 0; i < jobs; i++) {
            worker *w = &workers[i];
            const int task = w->task, late = task >= 0 && now() > w->deadline;
            if (task < 0 || (!files[i].revents && !late))
                continue;
            if (late && !files[i].revents)
                kill(w->pid, SIGKILL);
            if (!files[i].revents || !collect(p, w)) {
                char why[256];
                char *result = p->results + (size_t)task * p->result_bytes;
                retire(w, why, sizeof why);
                if (late)
                    snprintf(why, sizeof why, "not done after %.0f seconds", p->limit);
                memset(result, 0, p->result_bytes);
                lose(result, why);
            }
            kg_progress_to(progress, ++finished);
        }
    }
    for (int i = 0; i < jobs; i++) {
        char unused[256];
        if (workers[i].pid)
            retire(&workers[i], unused, sizeof unused);
    }
    signal(SIGPIPE, old);
    return code;
}

int pool_run(const pool *p)
{
    kg_progress progress;
    if (!p->jobs)
        return run_here(p);
    kg_progress_begin(&progress, p->what, p->count);
    const int code = run_apart(p, &progress);
    kg_progress_end(&progress);
    return code;
}
