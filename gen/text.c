#include "text.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void kg_text_free(kg_text *text)
{
    free(text->data);
    *text = (kg_text){0};
}

static int reserve(kg_text *text, size_t more)
{
    if (text->failed)
        return 0;
    if (text->size + more + 1 <= text->capacity)
        return 1;
    size_t capacity = text->capacity ? text->capacity : 256;
    while (capacity < text->size + more + 1)
        capacity *= 2;
    char *data = realloc(text->data, capacity);
    if (!data) {
        text->failed = 1;
        return 0;
    }
    text->data = data;
    text->capacity = capacity;
    return 1;
}

void kg_text_bytes(kg_text *text, const char *data, size_t size)
{
    if (!reserve(text, size))
        return;
    if (size)
        memcpy(text->data + text->size, data, size);
    text->size += size;
    text->data[text->size] = 0;
}

void kg_text_add(kg_text *text, const char *string) { kg_text_bytes(text, string, strlen(string)); }

void kg_text_addf(kg_text *text, const char *format, ...)
{
    va_list list, again;
    va_start(list, format);
    va_copy(again, list);
    const int size = vsnprintf(0, 0, format, list);
    va_end(list);
    if (size < 0)
        text->failed = 1;
    else if (reserve(text, (size_t)size)) {
        vsnprintf(text->data + text->size, (size_t)size + 1, format, again);
        text->size += (size_t)size;
    }
    va_end(again);
}

// Bytes of the well-formed UTF-8 character at `s`; 0: it is none.
static size_t character(const char *s)
{
    const unsigned char *c = (const unsigned char *)s;
    const size_t size = *c < 0x80 ? 1 : *c < 0xc2 ? 0 : *c < 0xe0 ? 2 : *c < 0xf0 ? 3 : *c < 0xf5 ? 4 : 0;
    for (size_t i = 1; i < size; i++)
        if ((c[i] & 0xc0) != 0x80)
            return 0;
    // Too long a form, a surrogate, beyond U+10FFFF.
    if ((*c == 0xe0 && c[1] < 0xa0) || (*c == 0xed && c[1] > 0x9f) || (*c == 0xf0 && c[1] < 0x90) || (*c == 0xf4 && c[1] > 0x8f))
        return 0;
    return size;
}

void kg_text_json(kg_text *text, const char *string)
{
    size_t size;
    kg_text_add(text, "\"");
    for (const char *s = string; *s; s += size ? size : 1) {
        const unsigned char c = (unsigned char)*s;
        size = character(s);
        if (c == '"' || c == '\\')
            kg_text_addf(text, "\\%c", c);
        else if (c == '\n')
            kg_text_add(text, "\\n");
        else if (c < 32 || c == 127)
            kg_text_addf(text, "\\u%04x", c);
        else if (size)
            kg_text_bytes(text, s, size);
        else
            kg_text_add(text, "\uFFFD");
    }
    kg_text_add(text, "\"");
}

void kg_text_number(kg_text *text, double number)
{
    char digits[40];
    for (int precision = 6; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, number);
        if (strtod(digits, 0) == number)
            break;
    }
    kg_text_add(text, digits);
}

// ---- did you mean ----------------------------------------------------------------------------------------------------

enum { LONGEST = 64 };

static int folded(char c) { return c == '-' || c == '.' ? '_' : tolower((unsigned char)c); }

// Insertions, deletions, substitutions and swaps of neighbours.
static int distance(const char *a, const char *b)
{
    const int m = (int)strlen(a), n = (int)strlen(b);
    if (m > LONGEST || n > LONGEST)
        return LONGEST;
    int rows[3][LONGEST + 1];
    for (int j = 0; j <= n; j++)
        rows[0][j] = j;
    for (int i = 1; i <= m; i++) {
        int *row = rows[i % 3], *last = rows[(i + 2) % 3], *before = rows[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= n; j++) {
            const int ca = folded(a[i - 1]), cb = folded(b[j - 1]);
            int best = last[j - 1] + (ca != cb);
            best = last[j] + 1 < best ? last[j] + 1 : best;
            best = row[j - 1] + 1 < best ? row[j - 1] + 1 : best;
            if (i > 1 && j > 1 && ca == folded(b[j - 2]) && folded(a[i - 2]) == cb && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            row[j] = best;
        }
    }
    return rows[m % 3][n];
}

int kg_text_seen(kg_text *seen, const char *line)
{
    const size_t length = strlen(line);
    for (const char *at = seen->data; at && *at; at = strchr(at, '\n') + 1)
        if (!strncmp(at, line, length) && at[length] == '\n')
            return 1;
    kg_text_addf(seen, "%s\n", line);
    return 0;
}

const char *kg_nearest(const char *word, const char *const *candidates, int count)
{
    const char *nearest = 0;
    const int letters = (int)strlen(word);
    int least = letters < 6 ? 2 : letters / 3 + 1; // fewer than this wrong: a third of the letters, one in a short word
    for (int i = 0; i < count; i++) {
        const int d = distance(word, candidates[i]);
        const int begins = nearest && d == least && !strncmp(candidates[i], word, strlen(word)); // sm_90a rather than sm_80 for sm_90
        if ((d < least || begins) && d < (int)strlen(candidates[i])) {
            least = d;
            nearest = candidates[i];
        }
    }
    return nearest;
}

int kg_fail(int code, char *error, size_t error_size, const char *format, ...)
{
    if (error && error_size) {
        va_list list;
        va_start(list, format);
        vsnprintf(error, error_size, format, list);
        va_end(list);
    }
    return code;
}
