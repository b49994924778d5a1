/* One call of an operator, as the C interface of every library here takes it. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Attributes in the order of the contract. `integers` for whole numbers (one, or a list), else `real`. */
typedef struct
{
    int64_t const* integers;
    int32_t count;
    float real;
} TrtcAttribute;

/* A tensor on the device, C order. `dtype` is ONNX's number: 1 float32, 10 float16, 16 bfloat16, 7 int64, 6 int32,
   2 uint8. Outputs of the largest size they may have where the data decide it. */
typedef struct
{
    void* data;
    int64_t const* shape;
    int32_t rank;
    int32_t dtype;
} TrtcTensor;

typedef struct
{
    char const* op_type;
    TrtcAttribute const* attributes;
    TrtcTensor const* inputs;
    TrtcTensor const* outputs;
    int32_t num_attributes;
    int32_t num_inputs;
    int32_t num_outputs;
    int32_t reserved; /* 0 */
} TrtcCall;

/* All functions that take a `message` return 0, or another number and a sentence in it (cut at `message_bytes`). */

/* The contracts of all operators, as JSON. */
char const* trtcDescribe(void);

/* What the outputs of a call will be; its `outputs` and all pointers to data are not read. `text` becomes JSON, cut at
   `text_bytes`: "dtypes", "shapes" (-1 where the data decide), and "formulas", the same sizes as expressions of those
   of the inputs, such as "(x[1] - 13)", with `data(output, usual, largest)` where the data decide. */
int32_t trtcOutputShapes(TrtcCall const* call, char* text, size_t text_bytes, char* message, size_t message_bytes);

#ifdef __cplusplus
}
#endif
