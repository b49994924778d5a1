/* The C interface of libtrtc_cuda: every operator's kernels, by op type. The emulation of the tests offers it too. */
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

/* All functions return 0, or another number and a sentence in `message` (cut at `message_bytes`). */

/* The contracts of all operators, as JSON. */
char const* trtcDescribe(void);

/* Scratch memory that trtcEnqueue needs for these shapes and types; pointers of tensors may be null. */
int32_t trtcWorkspaceBytes(TrtcCall const* call, size_t* bytes, char* message, size_t message_bytes);

/* Launches on `stream` (a cudaStream_t); neither allocates nor synchronises. */
int32_t trtcEnqueue(TrtcCall const* call, void* workspace, void* stream, char* message, size_t message_bytes);

/* After a synchronisation: 0 if no kernel found a mistake in its data since the last call. */
int32_t trtcTakeFault(char* message, size_t message_bytes);

#ifdef __cplusplus
}
#endif
