#define _GNU_SOURCE
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int user_or_machine(int code)
{
    return code == ENOENT || code == ENOTDIR || code == EACCES || code == EISDIR || code == ENAMETOOLONG ? KG_USER : KG_MACHINE;
}

int kg_file_read(const char *path, size_t limit, char **data, size_t *size, char *error, size_t error_size)
{
    *data = 0;
    *size = 0;
    struct stat info;
    // Not blocking, so that a FIFO is refused and not waited for.
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return kg_fail(user_or_machine(errno), error, error_size, "%s: %s", path, strerror(errno));
    int code = KG_OK;
    char *buffer = 0;
    if (fstat(file, &info) || !S_ISREG(info.st_mode)) {
        code = kg_fail(KG_USER, error, error_size, "%s: not a regular file", path);
        goto fail;
    }
    if ((unsigned long long)info.st_size > limit) {
        code = kg_fail(KG_USER, error, error_size, "%s: %lld bytes; at most %zu are read", path, (long long)info.st_size, limit);
        goto fail;
    }
    buffer = malloc((size_t)info.st_size + 1);
    if (!buffer) {
        code = kg_fail(KG_MACHINE, error, error_size, "%s: out of memory", path);
        goto fail;
    }
    size_t done = 0;
    while (done < (size_t)info.st_size) {
        const ssize_t got = read(file, buffer + done, (size_t)info.st_size - done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            code = kg_fail(KG_MACHINE, error, error_size, "%s: %s", path, strerror(errno));
            goto fail;
        }
        if (!got)
            break;
        done += (size_t)got;
    }
    buffer[done] = 0;
    *data = buffer;
    *size = done;
    buffer = 0;
fail:
    free(buffer);
    close(file);
    return code;
}

static int write_all(int file, const char *data, size_t size)
{
    while (size) {
        const ssize_t put = write(file, data, size);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -1;
        data += put;
        size -= (size_t)put;
    }
    return fsync(file);
}

char *kg_make_folders(char *path)
{
    for (char *slash = path; (slash = strchr(slash + 1, '/'));) {
        *slash = 0;
        const int failed = mkdir(path, 0777) && errno != EEXIST;
        *slash = '/';
        if (failed)
            return slash;
    }
    return 0;
}

static int open_temporary(const char *path, char temporary[KG_PATH], int *file, char *error, size_t error_size)
{
    if (snprintf(temporary, KG_PATH, "%s.%ld.tmp", path, (long)getpid()) >= KG_PATH)
        return kg_fail(KG_USER, error, error_size, "%s: path too long", path);
    *file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    return *file >= 0 ? KG_OK : kg_fail(user_or_machine(errno), error, error_size, "%s: cannot be written: %s", path, strerror(errno));
}

static int no_file(const char *path, char *error, size_t error_size)
{
    return kg_fail(KG_USER, error, error_size, "%s: not a regular file; nothing else is replaced", path);
}

int kg_file_probe(const char *path, char *error, size_t error_size)
{
    char temporary[KG_PATH];
    struct stat info;
    int file;
    const int there = !stat(path, &info);
    if (there && !S_ISREG(info.st_mode))
        return no_file(path, error, error_size);
    if (there && access(path, W_OK))
        return kg_fail(user_or_machine(errno), error, error_size, "%s: cannot be written: %s", path, strerror(errno));
    const int code = open_temporary(path, temporary, &file, error, error_size);
    if (code)
        return code;
    close(file);
    unlink(temporary);
    return KG_OK;
}

int kg_file_write(const char *path, const char *data, size_t size, int force, char *error, size_t error_size)
{
    char temporary[KG_PATH];
    struct stat info;
    int file, placeholder = -1;
    if (!stat(path, &info) && !S_ISREG(info.st_mode))
        return no_file(path, error, error_size);
    if (!force && !lstat(path, &info))
        return kg_fail(KG_USER, error, error_size, "%s: exists; --force overwrites it", path);
    const int opened = open_temporary(path, temporary, &file, error, error_size);
    if (opened)
        return opened;
    const int written = write_all(file, data, size);
    if (close(file) || written)
        goto fail;
    // The name is taken exclusively, so that a file that appeared meanwhile is not overwritten either.
    if (!force) {
        placeholder = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (placeholder < 0)
            goto fail;
        close(placeholder);
    }
    if (!rename(temporary, path))
        return KG_OK;
fail:;
    const int code = errno;
    unlink(temporary);
    if (placeholder >= 0)
        unlink(path);
    return kg_fail(KG_MACHINE, error, error_size, "%s: %s", path, strerror(code));
}

static int is_folder(const char *path)
{
    struct stat info;
    return !stat(path, &info) && S_ISDIR(info.st_mode);
}

char *kg_folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
}

int kg_find_folder(const char *name, const char *variable, char path[KG_PATH], char *error, size_t error_size)
{
    const char *given = getenv(variable);
    if (given && *given) {
        if (is_folder(given) && snprintf(path, KG_PATH, "%s", given) < KG_PATH)
            return KG_OK;
        return kg_fail(KG_MACHINE, error, error_size, "%s=%s: not a folder", variable, given);
    }
    static const char *const places[] = {"", "/../share/kittygen", "/.."};
    char executable[KG_PATH];
    const ssize_t length = readlink("/proc/self/exe", executable, sizeof executable - 1);
    executable[length < 0 ? 0 : length] = 0;
    char *slash = strrchr(executable, '/');
    if (slash) {
        *slash = 0;
        for (size_t i = 0; i < sizeof places / sizeof *places; i++)
            if (snprintf(path, KG_PATH, "%s%s/%s", executable, places[i], name) < KG_PATH && is_folder(path))
                return KG_OK;
    }
    return kg_fail(KG_MACHINE, error, error_size, "no folder '%s' in %s, its ../share/kittygen or its parent; set %s", name,
                   executable, variable);
}
