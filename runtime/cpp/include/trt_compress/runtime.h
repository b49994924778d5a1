/* Run a bundle of trt-compress from C.
 *
 * Every function that can fail returns a status; trtc_last_error() then has one sentence: what was given, what is
 * allowed, what to do. Nothing is thrown across this interface. A handle belongs to who made it: each *_new or *_open
 * has one *_free, which takes the address of the handle and sets it to NULL; to free NULL does nothing.
 *
 * Pointers that the library gives (names, dtypes' names, messages) belong to the library and are not freed; each says
 * how long it lives. Pointers that it takes belong to the caller, and are read or written during the call alone, but
 * for the buffers of trtc_run and trtc_run_graph: the library remembers their address, so that a next run on the same
 * buffers is told nothing anew, and reads or writes them in no other call.
 *
 * Options are set to zeros before they are filled: `trtc_session_options options = {0}; options.size = sizeof
 * options;`. A field that a later version adds is taken as 0 where `size` says that the caller does not know it.
 *
 * Threads: a session may be used by several at once. States and sequences are for one thread at a time; who comes
 * second is refused (TRTC_ERROR_BUSY), and waits for nothing.
 */
#ifndef TRT_COMPRESS_RUNTIME_H
#define TRT_COMPRESS_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#define TRTC_VERSION_MAJOR 0
#define TRTC_VERSION_MINOR 1

#if defined(__GNUC__)
#define TRTC_API __attribute__((visibility("default")))
#else
#define TRTC_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What became of a call. */
typedef enum trtc_status
{
    TRTC_OK = 0,
    TRTC_ERROR_CONFIG = 1,      /* the caller gave a bad value */
    TRTC_ERROR_SHAPE = 2,       /* a tensor, or a buffer for one, does not fit */
    TRTC_ERROR_BUNDLE = 3,      /* the bundle cannot be read, was changed, or is at fault */
    TRTC_ERROR_UNSUPPORTED = 4, /* legal, but not with this library or on this machine */
    TRTC_ERROR_PLUGIN = 5,      /* the native operators cannot be loaded */
    TRTC_ERROR_BUSY = 6,        /* another thread is using the handle */
    TRTC_ERROR_MEMORY = 7,      /* there is no memory for it */
    TRTC_ERROR_INTERNAL = 8     /* a fault of this library */
} trtc_status;

/* What a tensor holds. */
typedef enum trtc_dtype
{
    TRTC_DTYPE_NONE = 0,
    TRTC_BOOL = 1,
    TRTC_INT8 = 2,
    TRTC_UINT8 = 3,
    TRTC_INT16 = 4,
    TRTC_UINT16 = 5,
    TRTC_INT32 = 6,
    TRTC_UINT32 = 7,
    TRTC_INT64 = 8,
    TRTC_UINT64 = 9,
    TRTC_FLOAT16 = 10,
    TRTC_BFLOAT16 = 11,
    TRTC_FLOAT32 = 12,
    TRTC_FLOAT64 = 13,
    TRTC_FLOAT8_E4M3FN = 14,
    TRTC_FLOAT8_E4M3FNUZ = 15,
    TRTC_FLOAT8_E5M2 = 16,
    TRTC_FLOAT8_E5M2FNUZ = 17
} trtc_dtype;

#define TRTC_MOST_AXES 8

typedef struct trtc_session trtc_session;         /* a loaded bundle: weights, and what runs them */
typedef struct trtc_states trtc_states;           /* what one run leaves for the next */
typedef struct trtc_sequences trtc_sequences;     /* sequences of tokens, read by the bundle's procedure */
typedef struct trtc_tokenizer trtc_tokenizer;     /* tokens of a text, text of tokens */
typedef struct trtc_detokenizer trtc_detokenizer; /* the text of tokens that come one by one */
typedef struct trtc_generation trtc_generation;   /* an answer that is being written */

/* A tensor in memory of the caller, its elements in order of the last axis, without gaps. */
typedef struct trtc_tensor
{
    char const* name;              /* as the session lists it */
    trtc_dtype dtype;              /* of an output: filled in */
    int32_t rank;                  /* number of axes; of an output: filled in */
    int64_t shape[TRTC_MOST_AXES]; /* of an output: filled in */
    void* data;                    /* its first element */
    size_t bytes;                  /* of the buffer; of an output it may be longer than needed */
} trtc_tensor;

/* What the bundle says of a tensor. */
typedef struct trtc_tensor_info
{
    char const* name; /* lives as long as the session */
    trtc_dtype dtype;
    int32_t rank;
    int64_t shape[TRTC_MOST_AXES];       /* -1 where the length may be chosen */
    char const* symbols[TRTC_MOST_AXES]; /* the name of such a length, as long as the session, or NULL */
} trtc_tensor_info;

/* What pictures an input takes. */
typedef struct trtc_image_info
{
    char const* input; /* as the session lists it, and as long as it lives */
    int32_t channels;  /* 1 or 3 */
    int64_t height;    /* 0 where it may be chosen */
    int64_t width;
} trtc_image_info;

/* What sound an input takes: chunks of samples, each begun some samples behind the one before. */
typedef struct trtc_sound_info
{
    char const* input; /* as the session lists it, and as long as it lives */
    int64_t sample_rate;
    int32_t channels; /* with more than one they are an axis in front of the samples */
    int64_t chunk_samples;
    int64_t hop_samples;
} trtc_sound_info;

/* How a bundle is opened. */
typedef struct trtc_session_options
{
    size_t size;                 /* sizeof(trtc_session_options) */
    char const* backend;         /* "ort-cpu"; NULL means that */
    char const* onnxruntime;     /* path of libonnxruntime.so; NULL: the loader finds libonnxruntime.so.1 */
    char const* native_library;  /* path of libtrtc_onnxruntime.so; NULL: operators run as their ONNX bodies */
    char const* require_digest;  /* 64 hexadecimal digits that the bundle's digest must be; NULL: any */
    char const* const* graphs;   /* names of the graphs to load; NULL: all */
    size_t num_graphs;           /* how many names */
    int32_t threads;             /* threads of one operator; 0: the backend's own choice */
    int32_t no_spin;             /* not 0: threads do not wait in a busy loop */
    int32_t do_not_check_hashes; /* not 0: files are not compared with their hashes */
} trtc_session_options;

/* How states begin. */
typedef struct trtc_states_options
{
    size_t size;      /* sizeof(trtc_states_options) */
    int64_t batch;    /* sequences; 0: as many as the first run brings */
    int64_t capacity; /* the most slots that they may get; 0: as many as the bundle allows */
} trtc_states_options;

/* How an answer is written. */
typedef struct trtc_generate_options
{
    size_t size;                /* sizeof(trtc_generate_options) */
    int64_t max_new;            /* the most new tokens; 0: as the bundle says, else 256 */
    int64_t capacity;           /* the most tokens of prompt and answer; 0: as many as the bundle allows */
    int32_t chooses;            /* 0: tokens are chosen as the bundle says; not 0: as the next five fields do */
    int32_t detached;           /* not 0: a text of its own, without a space that only divides it from the prompt */
    double temperature;         /* 0: the most probable token */
    int64_t top_k;              /* 0: all */
    double top_p;               /* 0 or 1: all */
    double min_p;               /* 0: all */
    double repetition_penalty;  /* 0 or 1: none */
    uint64_t seed;              /* where its random numbers begin, which are those of numpy's default_rng */
    char const* const* stops;   /* texts that end the answer, which they are no part of */
    size_t num_stops;           /* how many */
    int64_t const* stop_tokens; /* tokens that end it, beside those of the bundle */
    size_t num_stop_tokens;     /* how many */
    int32_t ignore_stop_tokens; /* not 0: neither these nor those of the bundle do */
} trtc_generate_options;

/* Why an answer ended. */
typedef enum trtc_reason
{
    TRTC_GOES_ON = 0,
    TRTC_STOP = 1,   /* a token or a text that ends it */
    TRTC_LENGTH = 2, /* as many tokens as were asked for */
    TRTC_CONTEXT = 3 /* no room */
} trtc_reason;

/* What one step gave. */
typedef struct trtc_piece
{
    int64_t token;      /* what was chosen */
    char const* text;   /* what is now certain, UTF-8, often nothing; lives until the next call with the handle */
    size_t bytes;       /* of the text */
    trtc_reason reason; /* why the answer has ended */
} trtc_piece;

/* ---- what every function leaves ---- */

/* The sentence of the last call on this thread that failed. It lives until the next call on this thread. */
TRTC_API const char* trtc_last_error(void);

/* Version of the library, "0.1.0". Lives for ever. */
TRTC_API const char* trtc_version(void);

/* The manifest's name of a dtype ("float32"), or NULL; lives for ever. */
TRTC_API const char* trtc_dtype_name(trtc_dtype dtype);

/* Bytes of one element, or 0. */
TRTC_API size_t trtc_dtype_bytes(trtc_dtype dtype);

/* ---- sessions ---- */

/* Open a bundle, check it, and load its graphs.
 *   path     the directory, UTF-8
 *   options  NULL: all zeros
 *   session  takes the new handle, or NULL if it failed */
TRTC_API trtc_status trtc_session_open(char const* path, trtc_session_options const* options, trtc_session** session);

/* Let go of a session. States and sequences on it stay valid handles, and their runs are refused from then on. */
TRTC_API void trtc_session_free(trtc_session** session);

/* The digest of the bundle, 64 hexadecimal digits; NULL if session is NULL. Lives as long as the session. */
TRTC_API const char* trtc_session_digest(trtc_session const* session);

/* Version of ONNX Runtime that runs it; NULL if session is NULL. Lives as long as the session. */
TRTC_API const char* trtc_session_backend_version(trtc_session const* session);

/* What trtc_run takes and gives. With one graph names are bare, with several `graph.tensor`. */
TRTC_API size_t trtc_session_num_inputs(trtc_session const* session);
TRTC_API size_t trtc_session_num_outputs(trtc_session const* session);
TRTC_API trtc_status trtc_session_input(trtc_session const* session, size_t index, trtc_tensor_info* info);
TRTC_API trtc_status trtc_session_output(trtc_session const* session, size_t index, trtc_tensor_info* info);

/* The states of the loaded graphs, by their keys. */
TRTC_API size_t trtc_session_num_states(trtc_session const* session);
TRTC_API trtc_status trtc_session_state(trtc_session const* session, size_t index, trtc_tensor_info* info);

/* The loaded graphs, and what trtc_run_graph takes and gives for one of them. */
TRTC_API size_t trtc_session_num_graphs(trtc_session const* session);
TRTC_API const char* trtc_session_graph(trtc_session const* session, size_t index); /* as long as the session */

/* A file of the bundle, such as labels: checked against its hash and read whole.
 *   name   as the manifest lists it
 *   data   takes memory that the caller gives back with trtc_bytes_free; it ends with a 0 that is not counted
 *   bytes  takes its length */
TRTC_API trtc_status trtc_session_read_file(trtc_session const* session, char const* name, char** data, size_t* bytes);

/* The manifest, checked, as it stands in the bundle; given back as a file is. */
TRTC_API trtc_status trtc_session_manifest(trtc_session const* session, char** json, size_t* bytes);

/* Give back what the two functions above gave; NULL is passed over. */
TRTC_API void trtc_bytes_free(char** data);

/* The pictures that the first input takes; TRTC_ERROR_UNSUPPORTED where it takes none. */
TRTC_API trtc_status trtc_session_image(trtc_session const* session, trtc_image_info* info);

/* Make a picture the input: `(pixel * scale - mean) / std`, as the manifest says it.
 *   pixels  height * width * channels bytes, a pixel's channels side by side; of the size that the input takes, as
 *           nothing is resized here
 *   tensor  data and bytes: where it goes, float32; the rest is filled in, with a batch of 1 */
TRTC_API trtc_status trtc_image_convert(trtc_session const* session, uint8_t const* pixels, int64_t height,
    int64_t width, int32_t channels, trtc_tensor* tensor);

/* The sound that the first input takes; TRTC_ERROR_UNSUPPORTED where it takes none. */
TRTC_API trtc_status trtc_session_sound(trtc_session const* session, trtc_sound_info* info);

/* Make a chunk the input, as trtc_image_convert does: `(sample / 32768 * scale - mean) / std`.
 *   samples  chunk_samples * channels of 16 bits, those of one moment side by side */
TRTC_API trtc_status trtc_sound_convert(trtc_session const* session, int16_t const* samples, trtc_tensor* tensor);

/* The name of a class of the answers; NULL: it has none. Lives as long as the session. */
TRTC_API char const* trtc_session_label(trtc_session const* session, size_t index);

/* Latencies summed up, as JSON with the fields of Python's LatencySummary; given back as a file is. */
TRTC_API trtc_status trtc_latency_summary(int64_t const* nanoseconds, size_t count, char** json, size_t* bytes);

/* ---- states, and runs ---- */

/* What runs need beside the session, at the beginning of its history. Of a bundle without states too: a run has
 * its memory there. */
TRTC_API trtc_status trtc_states_new(
    trtc_session const* session, trtc_states_options const* options, trtc_states** states);
TRTC_API void trtc_states_free(trtc_states** states);

/* Begin anew: with any batch, and the smallest capacity. */
TRTC_API trtc_status trtc_states_reset(trtc_states* states);

/* The same history a second time; what is run on one does not change the other. */
TRTC_API trtc_status trtc_states_fork(trtc_states* states, trtc_states** copy);

/* Keep these sequences, in this order; one may be there several times. */
TRTC_API trtc_status trtc_states_keep(trtc_states* states, size_t const* rows, size_t num_rows);

/* Copy the value of a state.
 *   value  its name says which; data NULL asks for dtype, rank, shape and bytes alone. A state that no run has
 *          needed yet has the rank -1. */
TRTC_API trtc_status trtc_states_value(trtc_states* states, trtc_tensor* value);

/* Where a state is, to be looked at until the next call with the states; NULL: no run has needed it yet, or there is
 * none. It stays in its place where every graph that writes it can do so there. */
TRTC_API void const* trtc_states_data(trtc_states const* states, char const* name);

/* Run all loaded graphs once, in order.
 *   inputs   all that the session lists, in any order
 *   outputs  those that are wanted, each with a buffer; others are computed and let go
 * After a failure the states are as they were before; only where they were being written in place they are lost, and
 * each call but trtc_states_reset says so. */
TRTC_API trtc_status trtc_run(
    trtc_states* states, trtc_tensor const* inputs, size_t num_inputs, trtc_tensor* outputs, size_t num_outputs);

/* Run one of the loaded graphs; names of tensors are its own. */
TRTC_API trtc_status trtc_run_graph(trtc_states* states, char const* graph, trtc_tensor const* inputs,
    size_t num_inputs, trtc_tensor* outputs, size_t num_outputs);

/* ---- sequences of tokens ---- */

/* Begin sequences that a bundle with a procedure reads; options->batch 0 means 1. */
TRTC_API trtc_status trtc_sequences_new(
    trtc_session const* session, trtc_states_options const* options, trtc_sequences** sequences);
TRTC_API void trtc_sequences_free(trtc_sequences** sequences);

/* How many sequences there are, and numbers in a row of their logits; 0 if it is NULL. */
TRTC_API size_t trtc_sequences_count(trtc_sequences const* sequences);
TRTC_API size_t trtc_sequences_vocabulary(trtc_sequences const* sequences);

/* Tokens that each has read, [B]. */
TRTC_API trtc_status trtc_sequences_seen(trtc_sequences const* sequences, int64_t* seen, size_t count);

/* Run what stands before the prompt, on inputs by `graph.tensor`. */
TRTC_API trtc_status trtc_sequences_attend(trtc_sequences* sequences, trtc_tensor const* inputs, size_t num_inputs);

/* Read tokens that are known.
 *   texts    for each sequence its tokens
 *   lengths  how many each has
 *   logits   takes those behind the last token of each, float32 [B, V]; its name is not looked at. A sequence that
 *            was given no token has zeros */
TRTC_API trtc_status trtc_sequences_read(
    trtc_sequences* sequences, int64_t const* const* texts, size_t const* lengths, trtc_tensor* logits);

/* Read the next token of each sequence, [B].
 *   ended   not 0 where a sequence has ended and reads none; NULL: all go on. Its logits may be anything */
TRTC_API trtc_status trtc_sequences_step(
    trtc_sequences* sequences, int64_t const* tokens, uint8_t const* ended, trtc_tensor* logits);

/* Keep these sequences, in this order. */
TRTC_API trtc_status trtc_sequences_keep(trtc_sequences* sequences, size_t const* rows, size_t num_rows);

/* Their states, to look at with trtc_states_value; lives as long as the sequences, and is not freed. */
TRTC_API trtc_states* trtc_sequences_states(trtc_sequences* sequences);

/* ---- text ---- */

/* The tokenizer of a bundle. Several threads may use one at once; what was made with it outlives it. */
TRTC_API trtc_status trtc_tokenizer_open(trtc_session const* session, trtc_tokenizer** tokenizer);

/* A tokenizer of its own, from the bytes of a tokenizer.json. */
TRTC_API trtc_status trtc_tokenizer_read(char const* json, size_t bytes, trtc_tokenizer** tokenizer);
TRTC_API void trtc_tokenizer_free(trtc_tokenizer** tokenizer);

/* All numbers of tokens are below it; 0 if it is NULL. */
TRTC_API size_t trtc_tokenizer_size(trtc_tokenizer const* tokenizer);

/* The tokens of a text, UTF-8.
 *   special  not 0: with what the model wants around a text
 *   tokens   takes memory that the caller gives back with trtc_tokens_free */
TRTC_API trtc_status trtc_tokenizer_encode(
    trtc_tokenizer const* tokenizer, char const* text, size_t bytes, int32_t special, int64_t** tokens, size_t* count);
TRTC_API void trtc_tokens_free(int64_t** tokens);

/* The text of tokens, without special ones; given back with trtc_bytes_free, and it ends with a 0 that is not counted.
 */
TRTC_API trtc_status trtc_tokenizer_decode(
    trtc_tokenizer const* tokenizer, int64_t const* tokens, size_t count, char** text, size_t* bytes);

/* For tokens that come one by one, behind others; for one thread at a time, as what follows. */
TRTC_API trtc_status trtc_detokenizer_new(
    trtc_tokenizer const* tokenizer, int64_t const* before, size_t count, trtc_detokenizer** detokenizer);
TRTC_API void trtc_detokenizer_free(trtc_detokenizer** detokenizer);

/* The text that is now certain, often none, and what is left when no token follows; it lives until the next call. */
TRTC_API trtc_status trtc_detokenizer_add(
    trtc_detokenizer* detokenizer, int64_t token, char const** text, size_t* bytes);
TRTC_API trtc_status trtc_detokenizer_rest(trtc_detokenizer* detokenizer, char const** text, size_t* bytes);

/* Begin the answer to a prompt.
 *   tokenizer  NULL: there is no text, and no text stops it
 *   prompt     numbers of its tokens
 *   options    NULL: all zeros */
TRTC_API trtc_status trtc_generate_new(trtc_session const* session, trtc_tokenizer const* tokenizer,
    int64_t const* prompt, size_t count, trtc_generate_options const* options, trtc_generation** generation);
TRTC_API void trtc_generate_free(trtc_generation** generation);

/* Go on by one token, until the piece says why it has ended. */
TRTC_API trtc_status trtc_generate_next(trtc_generation* generation, trtc_piece* piece);

#ifdef __cplusplus
}
#endif

#endif
