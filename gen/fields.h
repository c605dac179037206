// The table of fields: what a spec may say. It drives parsing, messages, the reference, JSON and kittygen new.
#ifndef KG_FIELDS_H
#define KG_FIELDS_H

#include "spec.h"

typedef enum {
    KG_FIELD_INTEGER, // int: one of `choices`, or low to high
    KG_FIELD_NUMBER,  // double: low to high
    KG_FIELD_WORD,    // int: the index in `words`
    KG_FIELD_GROUP,   // int: one of `choices`, or minus the index in `words`
    KG_FIELD_NAME,    // text of KG_NAME bytes ("name": twice that)
    KG_FIELD_FILE     // text of KG_FILE bytes
} kg_field_kind;

typedef struct {
    const char *path;     // "key.boost.fraction"
    kg_field_kind kind;
    size_t offset;        // in kg_spec
    int low, high;
    double least;         // NUMBER: of what is not 0
    int choices[8];       // ends with 0; then low and high are not used
    const char *words[6]; // ends with null
    const char *fallback; // the default as text; null: the field must be given; "": computed
    const char *comment;
} kg_field;

// A value before it is checked.
typedef struct {
    enum { KG_VALUE_NUMBER, KG_VALUE_TEXT, KG_VALUE_OTHER } kind;
    double number;
    const char *text; // TEXT: the text; OTHER: what to call it ("a table")
} kg_value;

// In declared order; fields of a group ("", "model", "key", "key.boost", "value", "layers") are neighbours. What an override of `layers`
// may say beside its range are the fields of "key" and "value".
extern const kg_field kg_fields[];
extern const int kg_field_count;

const kg_field *kg_field_find(const char *path);
// The part of a path before its last dot, as a length; 0 at the top.
int kg_field_group(const char *path);
// Whether `path` is a group of fields.
int kg_field_is_group(const char *path);
// The names in a group, subgroups included, declared order; returns how many.
enum { KG_FIELD_NAMES = 16 };
int kg_field_names(const char *group, char names[KG_FIELD_NAMES][32]);

// What the field takes: "2, 4, 8, 16"; "0 to 1024".
void kg_field_allowed(kg_text *out, const kg_field *field);
void kg_value_show(kg_text *out, const kg_value *value);

// Stores the value, or returns 0 and adds "5 is not allowed; allowed: ..." to `reason`.
int kg_field_set(kg_spec *spec, const kg_field *field, const kg_value *value, kg_text *reason);
// Stores the default; returns 0 if there is none.
int kg_field_default(kg_spec *spec, const kg_field *field);

// Which optional parts a spec gave.
typedef struct {
    int boost, key_group, value_group;
} kg_given;

// Checks what needs several fields, and completes the spec: the name, groups of "page", bits where there is no boost. What layers differ in
// is not looked at: each way is finished as a spec of its own.
// Calls report(user, path, reason) for each fault.
void kg_spec_finish(kg_spec *spec, const kg_given *given, void (*report)(void *user, const char *path, const char *reason),
                    void *user);

// Whether keys or values are kept by what a calibration says.
int kg_spec_calibrated(const kg_spec *spec);

// The reference of all fields, as text or a JSON array.
void kg_field_reference(kg_text *out, int json);

#endif
