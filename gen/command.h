// The subcommands, and the option parsing they share. These functions print and return an exit code (text.h).
#ifndef KG_COMMAND_H
#define KG_COMMAND_H

#include <stddef.h>

int kg_command_check(int argc, char **argv); // argv[0] is the subcommand's name
int kg_command_new(int argc, char **argv);
int kg_command_emit(int argc, char **argv);
int kg_command_build(int argc, char **argv);
int kg_command_run(int argc, char **argv);
int kg_command_inspect(int argc, char **argv);
int kg_command_explore(int argc, char **argv);
int kg_command_tune(int argc, char **argv);
int kg_command_bench(int argc, char **argv);

// "--name", or "-o"; a value follows as the next argument or after '='. A list of options ends with a null name.
typedef struct {
    const char *name;
    const char *value; // what the value is called in the help; null: a flag
    const char *help;
    int *flag;         // flag: set to 1
    const char **text; // value: set to it, not copied
} kg_option;

typedef struct {
    const char *usage; // "kittygen check SPEC... [options]"
    const char *about; // one paragraph or more, ending in a newline
    const kg_option *options;
    int least, most;   // operands allowed; most < 0: any number
} kg_usage;

// Parses options anywhere among the operands and moves the operands to argv[1...]; "--" ends the options. Returns how many
// operands there are; or -1 when the command is to return *code at once: 0 after --help, 2 after a printed error.
int kg_options(const kg_usage *usage, int argc, char **argv, int *code);

// Prints what is wrong, where help is, and the nearest name; returns exit code 2.
int kg_usage_error(const char *command, const char *what, const char *word, const char *const *candidates, int count);

// Prints that an option's value is not allowed, what is, and the nearest of that; returns exit code 2.
int kg_value_error(const char *command, const char *option, const char *word, const char *const *allowed, int count);

// A whole decimal number in [low, high]: returns 0, or prints an error naming the option and returns exit code 2.
int kg_option_integer(const char *command, const char *option, const char *text, long low, long high, long *number);

// Which of `names` the word is: returns 0, or prints an error and returns exit code 2. A null word leaves *chosen as it is.
int kg_option_word(const char *command, const char *option, const char *word, const char *const *names, int count, int *chosen);

// Takes every "--name FILE" and "--name=FILE" out of the arguments: an option that may come more than once. One that has no value is left
// for kg_options to refuse. Returns the new argc, or -1 after a printed error: more than `most` files.
int kg_option_files(const char *command, const char *option, int argc, char **argv, const char **files, int most, int *count);

#endif
