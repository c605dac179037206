#include "cubin_cache.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../sha256.h"

// Little endian, as every machine with CUDA is.
typedef struct {
    char magic[8];
    uint64_t bytes; // of the cubin
    kt__cubin_stats stats;
    int32_t nvrtc_major, nvrtc_minor;
    char arch[KT__ARCH];
    char source[KT__SHA256_HEX + 7];         // digest of the source
    unsigned char digest[KT__SHA256_BYTES];  // of the header with zeros here, then the cubin
} header;

static const char magic[8] = "KTCUBIN1";
enum { CUBIN_LIMIT = 256 << 20 };

// ---- one file --------------------------------------------------------------------------------------------------------

static void digest_file(header head, const unsigned char *data, unsigned char digest[KT__SHA256_BYTES])
{
    kt__sha256 sha;
    memset(head.digest, 0, sizeof head.digest);
    kt__sha256_begin(&sha);
    kt__sha256_add(&sha, &head, sizeof head);
    kt__sha256_add(&sha, data, head.bytes);
    kt__sha256_end(&sha, digest);
}

// Null: taken into *cubin. Otherwise what is wrong; "" if there simply is no file.
static const char *read_cubin(const char *path, const kt__kernel *kernel, const char *arch, kt__cubin *cubin)
{
    header head;
    unsigned char digest[KT__SHA256_BYTES], *data = 0;
    const char *wrong = "not a cubin of this version";
    FILE *file = fopen(path, "rb");
    if (!file)
        return errno == ENOENT || errno == ENOTDIR ? "" : strerror(errno);
    if (fread(&head, sizeof head, 1, file) != 1 || memcmp(head.magic, magic, sizeof magic) || !head.bytes || head.bytes > CUBIN_LIMIT)
        goto fail;
    data = malloc(head.bytes);
    wrong = !data ? "no memory" : "truncated or damaged";
    if (!data || fread(data, 1, head.bytes, file) != head.bytes || getc(file) != EOF)
        goto fail;
    digest_file(head, data, digest);
    if (memcmp(digest, head.digest, sizeof digest))
        goto fail;
    wrong = "made from another source or for another architecture";
    if (strncmp(head.arch, arch, sizeof head.arch) || strncmp(head.source, kernel->digest, sizeof head.source))
        goto fail;
    *cubin = (kt__cubin){data, head.bytes, head.stats};
    fclose(file);
    return 0;
fail:
    fclose(file);
    free(data);
    return wrong;
}

// mkdir -p of a file's folder.
static int make_folders(const char *path)
{
    char part[4096];
    if ((size_t)snprintf(part, sizeof part, "%s", path) >= sizeof part)
        return ENAMETOOLONG;
    for (char *slash = part + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        if (mkdir(part, 0777) && errno != EEXIST)
            return errno;
        *slash = '/';
    }
    return 0;
}

// 0, or an errno. `first` (may be null) is written before `data`.
static int write_file(const char *path, const void *first, size_t first_bytes, const void *data, size_t bytes)
{
    static atomic_uint serial; // a name of its own for every write of every process
    char temporary[4096 + 64];
    int code = make_folders(path);
    if (code)
        return code;
    snprintf(temporary, sizeof temporary, "%s.%ld.%u.tmp", path, (long)getpid(), atomic_fetch_add(&serial, 1u));
    const int descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor < 0)
        return errno;
    FILE *file = fdopen(descriptor, "wb");
    if (!file) {
        code = errno;
        close(descriptor);
        goto fail;
    }
    if ((first_bytes && fwrite(first, first_bytes, 1, file) != 1) || (bytes && fwrite(data, bytes, 1, file) != 1))
        code = errno;
    if (fclose(file) && !code)
        code = errno;
    if (!code && rename(temporary, path))
        code = errno;
fail:
    if (code)
        unlink(temporary);
    return code;
}

int kt__cubin_write(const char *path, const kt__kernel *kernel, const char *arch, const kt__nvrtc *nvrtc, const kt__cubin *cubin)
{
    header head;
    memset(&head, 0, sizeof head);
    memcpy(head.magic, magic, sizeof magic);
    head.bytes = cubin->bytes;
    head.stats = cubin->stats;
    head.nvrtc_major = nvrtc->major;
    head.nvrtc_minor = nvrtc->minor;
    snprintf(head.arch, sizeof head.arch, "%s", arch);
    snprintf(head.source, sizeof head.source, "%s", kernel->digest);
    digest_file(head, cubin->data, head.digest);
    return write_file(path, &head, sizeof head, cubin->data, cubin->bytes);
}

// ---- where -----------------------------------------------------------------------------------------------------------

kt_status kt__cubins_path(const kt__cubins *c, const kt__kernel *kernel, const char *arch, char *path, size_t size)
{
    if (!*c->environment.cache_dir)
        return kt__fail(KT_IO, "no folder for compiled kernels: neither KT_CACHE_DIR, XDG_CACHE_HOME nor HOME names one; set KT_CACHE_DIR");
    char text[512], key[KT__SHA256_HEX];
    const int n = snprintf(text, sizeof text, "kittygen cubin %d\n%s\n%s\nNVRTC %d.%d\n%s\n", KT_FORMAT_VERSION, kernel->digest, arch,
                           c->nvrtc.major, c->nvrtc.minor, kt__nvrtc_options);
    kt__sha256_text(text, (size_t)n, key);
    if ((size_t)snprintf(path, size, "%s/%s.cubin", c->environment.cache_dir, key) >= size)
        return kt__fail(KT_IO, "%.64s...: the name of the cache folder is too long; set KT_CACHE_DIR", c->environment.cache_dir);
    return KT_OK;
}

static void bundle_path(const kt__cubins *c, const kt__kernel *kernel, const char *arch, char *path, size_t size)
{
    snprintf(path, size, "%s/cubin/%s/%s.cubin", c->bundle, arch, kernel->name);
}

static kt_status cannot_write(const char *path, int code, const char *fix)
{
    const char *slash = strrchr(path, '/');
    return kt__fail(KT_IO, "cannot write to %.*s: %s%s", slash ? (int)(slash - path) : 0, path, strerror(code), fix);
}

// Fails before a compilation is spent.
static kt_status check_writable(const char *path)
{
    char folder[4096];
    int code = make_folders(path);
    snprintf(folder, sizeof folder, "%s", path);
    *strrchr(folder, '/') = 0;
    if (!code && access(folder, W_OK | X_OK))
        code = errno;
    return code ? cannot_write(path, code, "; set KT_CACHE_DIR to a folder for compiled kernels that you may write to") : KT_OK;
}

static kt_status dump(const kt__cubins *c, const kt__kernel *kernel, const char *arch, const kt__cubin *cubin)
{
    char path[4096];
    if (!*c->environment.dump_dir)
        return KT_OK;
    snprintf(path, sizeof path, "%s/%s.%.8s.cu", c->environment.dump_dir, kernel->name, kernel->digest);
    int code = write_file(path, 0, 0, kernel->source, strlen(kernel->source));
    snprintf(path, sizeof path, "%s/%s.%.8s.%s.cubin", c->environment.dump_dir, kernel->name, kernel->digest, arch);
    if (!code)
        code = write_file(path, 0, 0, cubin->data, cubin->bytes);
    return code ? cannot_write(path, code, "; KT_DUMP names it") : KT_OK;
}

static void log_line(const kt__cubins *c, const kt__kernel *kernel, const char *arch, const kt__cubin *cubin, kt__cubin_origin origin)
{
    static const char *const did[] = {"loaded from the package", "loaded from the cache", "compiled"};
    const kt__cubin_stats *s = &cubin->stats;
    if (c->environment.log < 1)
        return;
    if (origin == KT__COMPILED)
        fprintf(stderr, "kitty: %s %s: compiled in %d ms, %d registers, %d bytes spilled\n", kernel->name, arch, s->milliseconds,
                s->registers, s->spill_stores);
    else
        fprintf(stderr, "kitty: %s %s: %s\n", kernel->name, arch, did[origin]);
}

// ---- the three sources -----------------------------------------------------------------------------------------------

void kt__cubins_open(kt__cubins *c, const kt__environment *environment, const char *bundle, int newest_major)
{
    memset(c, 0, sizeof *c);
    c->environment = *environment;
    if (bundle && (size_t)snprintf(c->bundle, sizeof c->bundle, "%s", bundle) >= sizeof c->bundle)
        c->bundle[0] = 0;
    c->have_nvrtc = !kt__nvrtc_find(environment, newest_major, &c->nvrtc);
    if (!c->have_nvrtc)
        snprintf(c->no_nvrtc, sizeof c->no_nvrtc, "%s", kt_message());
    pthread_mutex_init(&c->lock, 0);
}

void kt__cubins_close(kt__cubins *c) { pthread_mutex_destroy(&c->lock); }

static kt_status compile(kt__cubins *c, const kt__kernel *kernel, const char *arch, const char *path, const char *why, kt__cubin *cubin)
{
    if (c->environment.no_jit)
        return kt__fail(KT_COMPILE, "%s for %s is in neither the package nor the cache (%s)%s%s%s, and KT_NO_JIT forbids to compile it", kernel->name,
                        arch, c->environment.cache_dir, *why ? " (" : "", why, *why ? ")" : "");
    kt_status status = check_writable(path);
    if (status)
        return status;
    pthread_mutex_lock(&c->lock);
    status = kt__nvrtc_load(&c->nvrtc);
    pthread_mutex_unlock(&c->lock);
    if (status || (status = kt__nvrtc_compile(&c->nvrtc, kernel, arch, cubin)))
        return status;
    const int code = kt__cubin_write(path, kernel, arch, &c->nvrtc, cubin);
    if (code) {
        kt__cubin_free(cubin);
        return cannot_write(path, code, "; set KT_CACHE_DIR to a folder for compiled kernels that you may write to");
    }
    return KT_OK;
}

// From the cache or NVRTC.
static kt_status get_cached(kt__cubins *c, const kt__kernel *kernel, const char *arch, const char *in_bundle, kt__cubin *cubin,
                            kt__cubin_origin *origin)
{
    char path[4096];
    if (!c->have_nvrtc) // its version is part of the key
        return kt__fail(KT_UNSUPPORTED, "%s for %s is not ready in the package%s%s, and %s", kernel->name, arch, *in_bundle ? ": " : "",
                        in_bundle, c->no_nvrtc);
    const kt_status status = kt__cubins_path(c, kernel, arch, path, sizeof path);
    if (status)
        return status;
    const char *wrong = read_cubin(path, kernel, arch, cubin);
    *origin = wrong ? KT__COMPILED : KT__FROM_CACHE;
    if (!wrong)
        return KT_OK;
    if (*wrong && c->environment.log >= 1)
        fprintf(stderr, "kitty: %s %s: the cached file is %s, and is made again\n", kernel->name, arch, wrong);
    return compile(c, kernel, arch, path, *wrong ? wrong : in_bundle, cubin);
}

kt_status kt__cubins_get(kt__cubins *c, const kt__kernel *kernel, const char *arch, kt__cubin *cubin, kt__cubin_origin *origin)
{
    char path[4096];
    const char *wrong = "";
    kt_status status = KT_OK;
    *cubin = (kt__cubin){0};
    *origin = KT__FROM_BUNDLE;
    bundle_path(c, kernel, arch, path, sizeof path);
    if (*c->bundle && !c->write_bundle)
        wrong = read_cubin(path, kernel, arch, cubin);
    if (!cubin->data)
        status = get_cached(c, kernel, arch, wrong ? wrong : "", cubin, origin);
    if (!status && c->write_bundle) {
        const int code = kt__cubin_write(path, kernel, arch, &c->nvrtc, cubin);
        status = code ? cannot_write(path, code, "") : KT_OK;
    }
    if (!status)
        status = dump(c, kernel, arch, cubin);
    if (status)
        kt__cubin_free(cubin);
    else
        log_line(c, kernel, arch, cubin, *origin);
    return status;
}
