/* What a bundle takes and gives, and one run of it on zeros, in plain C.
 *   run_bundle BUNDLE [LIBONNXRUNTIME]
 */
#include "trt_compress/runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 16

static int failed(const char* what)
{
    fprintf(stderr, "%s: %s\n", what, trtc_last_error());
    return 1;
}

/* A tensor of zeros; lengths that may be chosen are 1. */
static int make(const trtc_tensor_info* info, trtc_tensor* tensor)
{
    size_t bytes = trtc_dtype_bytes(info->dtype);
    int32_t axis;
    memset(tensor, 0, sizeof *tensor);
    tensor->name = info->name;
    tensor->dtype = info->dtype;
    tensor->rank = info->rank;
    printf("%s %s [", info->name, trtc_dtype_name(info->dtype));
    for (axis = 0; axis < info->rank; ++axis)
    {
        tensor->shape[axis] = info->shape[axis] < 0 ? 1 : info->shape[axis];
        bytes *= (size_t)tensor->shape[axis];
        if (info->symbols[axis] != NULL)
        {
            printf("%s%s", axis ? ", " : "", info->symbols[axis]);
        }
        else
        {
            printf("%s%lld", axis ? ", " : "", (long long)info->shape[axis]);
        }
    }
    printf("]\n");
    tensor->bytes = bytes;
    tensor->data = calloc(bytes ? bytes : 1, 1);
    return tensor->data == NULL;
}

int main(int count, char** arguments)
{
    trtc_session_options options = {0};
    trtc_session* session = NULL;
    trtc_states* states = NULL;
    trtc_tensor inputs[MOST], outputs[MOST];
    trtc_tensor_info info;
    size_t num_inputs, num_outputs, at;
    int code = 0;

    if (count < 2 || count > 3)
    {
        fprintf(stderr, "give a bundle, and the path of libonnxruntime.so where the loader does not find it\n");
        return 2;
    }
    options.size = sizeof options;
    options.onnxruntime = count == 3 ? arguments[2] : NULL;
    if (trtc_session_open(arguments[1], &options, &session) != TRTC_OK)
    {
        return failed("open");
    }
    num_inputs = trtc_session_num_inputs(session);
    num_outputs = trtc_session_num_outputs(session);
    if (num_inputs > MOST || num_outputs > MOST || trtc_states_new(session, NULL, &states) != TRTC_OK)
    {
        trtc_session_free(&session);
        return failed("states");
    }
    printf("ONNX Runtime %s\n", trtc_session_backend_version(session));
    memset(inputs, 0, sizeof inputs);
    memset(outputs, 0, sizeof outputs);
    for (at = 0; at < num_inputs && code == 0; ++at)
    {
        code = trtc_session_input(session, at, &info) != TRTC_OK || make(&info, &inputs[at]);
    }
    for (at = 0; at < num_outputs && code == 0; ++at)
    {
        code = trtc_session_output(session, at, &info) != TRTC_OK || make(&info, &outputs[at]);
    }
    if (code == 0 && trtc_run(states, inputs, num_inputs, outputs, num_outputs) != TRTC_OK)
    {
        code = failed("run");
    }
    for (at = 0; at < num_outputs && code == 0; ++at)
    {
        if (outputs[at].dtype == TRTC_FLOAT32 && outputs[at].bytes >= sizeof(float))
        {
            printf("%s begins with %g\n", outputs[at].name, (double)*(float*)outputs[at].data);
        }
    }
    for (at = 0; at < MOST; ++at)
    {
        free(inputs[at].data);
        free(outputs[at].data);
    }
    trtc_states_free(&states);
    trtc_session_free(&session);
    return code;
}
