// Text: a growing buffer with a sticky error, JSON strings, "did you mean", and the files that commands read and write.
#ifndef KG_TEXT_H
#define KG_TEXT_H

#include <stddef.h>

enum { KG_OK = 0, KG_FAILED = 1, KG_USER = 2, KG_MACHINE = 3 }; // exit codes of the command
enum { KG_ERROR = 4096, KG_PATH = 4096 };                       // bytes of an error message and of a path

// Zero-initialise. After a failed allocation every call does nothing: check `failed` once, at the end.
typedef struct {
    char *data; // ends in a null byte; null while empty
    size_t size, capacity;
    int failed;
} kg_text;

void kg_text_free(kg_text *text);
void kg_text_bytes(kg_text *text, const char *data, size_t size);
void kg_text_add(kg_text *text, const char *string);
void kg_text_addf(kg_text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

// A JSON string with its quotes; also how values are shown in messages. Control characters become \uXXXX,
// bytes that are not UTF-8 U+FFFD.
void kg_text_json(kg_text *text, const char *string);
// The shortest decimal that reads back as the same double.
void kg_text_number(kg_text *text, double number);

// Whether a line equal to `line` was added to `seen` before; adds it if not. Texts without line breaks.
int kg_text_seen(kg_text *seen, const char *line);

// The candidate nearest to `word`, or null if none is near. Hyphens and underscores count as equal.
const char *kg_nearest(const char *word, const char *const *candidates, int count);

// Formats into an error buffer that may be null; returns `code`, so that a failing function can return it at once.
int kg_fail(int code, char *error, size_t error_size, const char *format, ...) __attribute__((format(printf, 4, 5)));

// ---- files (paths.c) -------------------------------------------------------------------------------------------------

// Reads a regular file of at most `limit` bytes; *data ends in a null byte and is the caller's to free.
// Returns KG_OK, KG_USER (no such file, a folder, too large) or KG_MACHINE; the message begins with the path.
int kg_file_read(const char *path, size_t limit, char **data, size_t *size, char *error, size_t error_size);

// Writes a file whole or not at all: into a temporary beside it, then renamed. Without `force` an existing file, and in
// any case what is no regular file, is kept and KG_USER returned; KG_MACHINE if the disk fails.
int kg_file_write(const char *path, const char *data, size_t size, int force, char *error, size_t error_size);
// Whether that will find its place, for what takes long to make: the temporary can be made, and what is there already is a file that may
// be written to. Leaves nothing behind.
int kg_file_probe(const char *path, char *error, size_t error_size);

// The folder that a path's file is in, "." where the path names none; the caller's to free, null without memory.
char *kg_folder_of(const char *path);

// Makes the folders that the path names before each '/'. Null; else where in the path the one ends that could not be made, with errno.
char *kg_make_folders(char *path);

// Finds a shipped folder ("specs", "templates"): the environment variable if set, else beside the executable (NAME,
// ../share/kittygen/NAME, ../NAME). Returns KG_OK or KG_MACHINE with what was looked for.
int kg_find_folder(const char *name, const char *variable, char path[KG_PATH], char *error, size_t error_size);

#endif
