#include "command.h"
#include "text.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// "kittygen check SPEC... [options]" names its own command: the first two words.
static int command_length(const char *usage)
{
    const char *space = strchr(usage, ' ');
    const char *end = space ? strchr(space + 1, ' ') : 0;
    return (int)(end ? (size_t)(end - usage) : strlen(usage));
}

static void print_help(const kg_usage *usage)
{
    printf("usage: %s\n\n%s\noptions:\n", usage->usage, usage->about);
    for (const kg_option *o = usage->options; o->name; o++) {
        char left[64];
        snprintf(left, sizeof left, "%s%s%s", o->name, o->value ? " " : "", o->value ? o->value : "");
        printf("  %-24s %s\n", left, o->help);
    }
    printf("  %-24s %s\n", "--help", "this text");
}

int kg_usage_error(const char *command, const char *what, const char *word, const char *const *candidates, int count)
{
    const char *nearest = kg_nearest(word, candidates, count);
    fprintf(stderr, "%s: %s '%s'; see %s --help", command, what, word, command);
    if (nearest)
        fprintf(stderr, "; did you mean `%s`?", nearest);
    fprintf(stderr, "\n");
    return KG_USER;
}

int kg_value_error(const char *command, const char *option, const char *word, const char *const *allowed, int count)
{
    const char *nearest = kg_nearest(word, allowed, count);
    fprintf(stderr, "kittygen %s: %s: '%s' is not allowed; allowed: ", command, option, word);
    for (int i = 0; i < count; i++)
        fprintf(stderr, "%s%s", i ? ", " : "", allowed[i]);
    if (nearest)
        fprintf(stderr, "; did you mean `%s`?", nearest);
    fprintf(stderr, "\n");
    return KG_USER;
}

static const kg_option *find_option(const kg_usage *usage, const char *name, size_t length)
{
    for (const kg_option *o = usage->options; o->name; o++)
        if (strlen(o->name) == length && !memcmp(o->name, name, length))
            return o;
    return 0;
}

static int unknown_option(const kg_usage *usage, const char *command, const char *word)
{
    const char *names[64];
    int count = 0;
    for (const kg_option *o = usage->options; o->name && count < 64; o++)
        names[count++] = o->name;
    return kg_usage_error(command, "unknown option", word, names, count);
}

int kg_options(const kg_usage *usage, int argc, char **argv, int *code)
{
    char command[64];
    snprintf(command, sizeof command, "%.*s", command_length(usage->usage), usage->usage);
    int operands = 0, ended = 0;
    *code = KG_USER;
    for (int i = 1; i < argc; i++) {
        char *word = argv[i];
        if (ended || word[0] != '-' || !word[1]) {
            argv[++operands] = word;
            continue;
        }
        if (!strcmp(word, "--")) {
            ended = 1;
            continue;
        }
        if (!strcmp(word, "--help") || !strcmp(word, "-h")) {
            print_help(usage);
            *code = KG_OK;
            return -1;
        }
        const char *equals = strchr(word, '=');
        const kg_option *option = find_option(usage, word, equals ? (size_t)(equals - word) : strlen(word));
        if (!option) {
            *code = unknown_option(usage, command, word);
            return -1;
        }
        if (!option->value && equals) {
            fprintf(stderr, "%s: %s takes no value\n", command, option->name);
            return -1;
        }
        if (option->value && !equals && i + 1 == argc) {
            fprintf(stderr, "%s: %s needs a value: %s\n", command, option->name, option->value);
            return -1;
        }
        if (option->value && !*(equals ? equals + 1 : argv[i + 1])) {
            fprintf(stderr, "%s: %s is empty; it takes %s\n", command, option->name, option->value);
            return -1;
        }
        if (!option->value)
            *option->flag = 1;
        else
            *option->text = equals ? equals + 1 : argv[++i];
    }
    if (operands < usage->least || (usage->most >= 0 && operands > usage->most)) {
        fprintf(stderr, "%s: %s\nusage: %s\n", command,
                operands < usage->least ? "too few arguments" : "too many arguments", usage->usage);
        return -1;
    }
    return operands;
}

int kg_option_integer(const char *command, const char *option, const char *text, long low, long high, long *number)
{
    char *end;
    errno = 0;
    const long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < low || value > high) {
        fprintf(stderr, "kittygen %s: %s: '%s' is not allowed; allowed: %ld to %ld\n", command, option, text, low, high);
        return KG_USER;
    }
    *number = value;
    return 0;
}

int kg_option_word(const char *command, const char *option, const char *word, const char *const *names, int count, int *chosen)
{
    for (int i = 0; word && i < count; i++) {
        if (!strcmp(word, names[i])) {
            *chosen = i;
            return KG_OK;
        }
    }
    return word ? kg_value_error(command, option, word, names, count) : KG_OK;
}

int kg_option_files(const char *command, const char *option, int argc, char **argv, const char **files, int most, int *count)
{
    const size_t length = strlen(option);
    int kept = 1;
    for (int i = 1; i < argc; i++) {
        const char *file = 0;
        if (!strcmp(argv[i], "--")) {
            while (i < argc)
                argv[kept++] = argv[i++];
            break;
        }
        if (!strncmp(argv[i], option, length) && argv[i][length] == '=')
            file = argv[i] + length + 1;
        else if (!strcmp(argv[i], option) && i + 1 < argc)
            file = argv[++i];
        if (!file)
            argv[kept++] = argv[i];
        else if (*count < most)
            files[(*count)++] = file;
        else {
            fprintf(stderr, "kittygen %s: more than %d %s files\n", command, most, option);
            return -1;
        }
    }
    return kept;
}
