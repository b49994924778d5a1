/* The C interface of libtrtc_cuda: every operator's kernels, by op type. The emulation of the tests offers it too. */
#pragma once

#include "common/call.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Scratch memory that trtcEnqueue needs for these shapes and types; pointers of tensors may be null. */
int32_t trtcWorkspaceBytes(TrtcCall const* call, size_t* bytes, char* message, size_t message_bytes);

/* Launches on `stream` (a cudaStream_t); neither allocates nor synchronises. */
int32_t trtcEnqueue(TrtcCall const* call, void* workspace, void* stream, char* message, size_t message_bytes);

/* After a synchronisation: 0 if no kernel found a mistake in its data since the last call. */
int32_t trtcTakeFault(char* message, size_t message_bytes);

#ifdef __cplusplus
}
#endif
