#include "locate.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME = 96, DEPTH = 16 };

typedef struct {
    const char *at;
    int line;
} cursor;

static void advance(cursor *c, const char *to)
{
    for (; c->at < to; c->at++)
        c->line += *c->at == '\n';
}

// The end of [[...]] or [=[...]=] at `s`, or null if none begins there.
static const char *long_bracket(const char *s)
{
    const size_t level = *s == '[' ? strspn(s + 1, "=") : 0;
    if (*s != '[' || s[1 + level] != '[')
        return 0;
    for (const char *e = strchr(s + level + 2, ']'); e; e = strchr(e + 1, ']'))
        if (strspn(e + 1, "=") == level && e[1 + level] == ']')
            return e + level + 2;
    return s + strlen(s);
}

static const char *string_end(const char *s)
{
    const char quote = *s++;
    for (; *s && *s != quote && *s != '\n'; s++)
        if (*s == '\\' && s[1])
            s++;
    return *s == quote ? s + 1 : s;
}

static void skip_blank(cursor *c)
{
    for (;;) {
        if (isspace((unsigned char)*c->at))
            advance(c, c->at + 1);
        else if (c->at[0] == '-' && c->at[1] == '-') {
            const char *end = long_bracket(c->at + 2);
            advance(c, end ? end : c->at + strcspn(c->at, "\n"));
        } else
            return;
    }
}

static int is_letter(char c) { return isalnum((unsigned char)c) || c == '_'; }

// 2: the value stands there; 0: another literal does; 1: something to be computed.
static int value_rank(const char *s, const kg_value *value)
{
    if (!value)
        return 1;
    const int numeric = isdigit((unsigned char)*s) || ((*s == '-' || *s == '.') && isdigit((unsigned char)s[1]));
    const double number = numeric ? strtod(s, 0) : 0;
    if (numeric)
        return value->kind == KG_VALUE_NUMBER && number == value->number ? 2 : 0;
    if (*s == '"' || *s == '\'') {
        const size_t length = (size_t)(string_end(s) - s) - 2;
        return value->kind == KG_VALUE_TEXT && strlen(value->text) == length && !strncmp(s + 1, value->text, length) ? 2 : 0;
    }
    return 1;
}

static int ends_with(const char *path, const char *end)
{
    const size_t n = strlen(path), m = strlen(end);
    return m < n && path[n - m - 1] == '.' && !strcmp(path + n - m, end);
}

static int path_rank(const char *found, const char *path)
{
    return !strcmp(found, path) ? 2 : ends_with(found, path) || ends_with(path, found);
}

int kg_locate(const char *text, const char *path, const kg_value *value, int *line)
{
    cursor c = {text, 1};
    char stack[DEPTH][NAME]; // the path of each open table
    int elements[DEPTH];     // tables without a name in each, so far
    char name[NAME] = "";    // a dotted name just read
    int depth = 0, best = 0;
    stack[0][0] = 0;
    elements[0] = 0;
    for (skip_blank(&c); *c.at; skip_blank(&c)) {
        const char *s = c.at;
        const char *bracket = long_bracket(s);
        if (is_letter(*s)) {
            const char *e = s;
            while (is_letter(*e) || (*e == '.' && is_letter(e[1])))
                e++;
            snprintf(name, sizeof name, "%.*s", (int)(e - s), s);
            advance(&c, e);
            continue;
        }
        if (*s == '=' && s[1] != '=' && *name) {
            const int at = c.line;
            char found[2 * NAME];
            snprintf(found, sizeof found, "%s%s%s", stack[depth], *stack[depth] ? "." : "", name);
            advance(&c, s + 1);
            skip_blank(&c);
            const int match = path_rank(found, path);
            const int rank = match ? match + 3 * value_rank(c.at, value) : 0; // the value says more than how the path is written
            if (rank > best) {
                best = rank;
                *line = at;
            }
            if (*c.at == '{' && depth + 1 < DEPTH) {
                snprintf(stack[++depth], NAME, "%.*s", NAME - 1, found);
                elements[depth] = 0;
                advance(&c, c.at + 1);
            }
        } else if (*s == '{' && depth + 1 < DEPTH) {
            const size_t length = strlen(stack[depth]);
            memcpy(stack[depth + 1], stack[depth], NAME);
            if (length && !*name) // an element of a list
                snprintf(stack[depth + 1] + length, NAME - length, "[%d]", ++elements[depth]);
            elements[++depth] = 0;
            advance(&c, s + 1);
        } else {
            if (*s == '}' && depth)
                depth--;
            advance(&c, bracket ? bracket : *s == '"' || *s == '\'' ? string_end(s) : s + (*s == '=' && s[1] == '=' ? 2 : 1));
        }
        name[0] = 0;
    }
    return best;
}
