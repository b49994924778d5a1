// The part of the C interface that has to do with text.

#include "api_call.h"
#include "generate.h"

using namespace trtc::runtime;

struct trtc_tokenizer
{
    std::shared_ptr<Tokenizer const> tokenizer;
};

struct trtc_detokenizer
{
    std::shared_ptr<Tokenizer const> tokenizer;
    Detokenizer detokenizer;
    std::string text;
    std::atomic<bool> isUsed{false};
};

struct trtc_generation
{
    Generation generation;
};

namespace
{

template <typename Handle>
void nothingYet(Handle** handle) noexcept
{
    if (handle != nullptr)
    {
        *handle = nullptr;
    }
}

template <typename Handle>
void freed(Handle** handle) noexcept
{
    if (handle != nullptr)
    {
        delete *handle;
        *handle = nullptr;
    }
}

std::vector<int64_t> tokensOf(int64_t const* tokens, size_t count)
{
    if (count != 0)
    {
        needs(tokens, "tokens");
    }
    return {tokens, tokens + count};
}

trtc_status textOf(trtc_detokenizer* detokenizer, char const** text, size_t* bytes, int64_t const* token) noexcept
{
    return guarded(
        [&]
        {
            needs(detokenizer, "detokenizer");
            needs(text, "text");
            needs(bytes, "bytes");
            Claim const claim(detokenizer->isUsed, "a text");
            Detokenizer& held = detokenizer->detokenizer;
            detokenizer->text = token == nullptr ? held.rest() : held.add(*token);
            *text = detokenizer->text.c_str();
            *bytes = detokenizer->text.size();
        });
}

GenerateOptions optionsOf(trtc_generate_options const* options)
{
    trtc_generate_options const given = known(options);
    GenerateOptions made;
    made.maxNew = given.max_new;
    made.capacity = given.capacity;
    made.seed = given.seed;
    made.isDetached = given.detached != 0;
    made.ignoresStopTokens = given.ignore_stop_tokens != 0;
    if (given.chooses != 0)
    {
        Sampling& sampling = made.sampling.emplace();
        sampling.temperature = given.temperature;
        sampling.topK = given.top_k;
        sampling.topP = given.top_p == 0 ? 1 : given.top_p;
        sampling.minP = given.min_p;
        sampling.repetitionPenalty = given.repetition_penalty == 0 ? 1 : given.repetition_penalty;
    }
    if (given.num_stops != 0)
    {
        needs(given.stops, "stops");
    }
    for (size_t at = 0; at < given.num_stops; ++at)
    {
        needs(given.stops[at], "a text that ends the answer");
        made.stops.emplace_back(given.stops[at]);
    }
    made.stopTokens = tokensOf(given.stop_tokens, given.num_stop_tokens);
    return made;
}

} // namespace

extern "C" {

trtc_status trtc_tokenizer_open(trtc_session const* session, trtc_tokenizer** tokenizer)
{
    nothingYet(tokenizer);
    return guarded(
        [&]
        {
            needs(session, "session");
            needs(tokenizer, "tokenizer");
            Bundle const& bundle = session->loaded->bundle;
            if (!bundle.manifest().text)
            {
                throw configError("The bundle has no tokenizer; give the numbers of tokens, or export it from a model "
                                  "that has one.");
            }
            std::string const& file = bundle.manifest().text->tokenizer;
            auto const content = bundle.read(file);
            auto made = std::make_unique<trtc_tokenizer>();
            made->tokenizer = std::make_shared<Tokenizer>(
                content->data(), content->size(), "'" + shown(file) + "' of the bundle", TRTC_ERROR_BUNDLE);
            *tokenizer = made.release();
        });
}

trtc_status trtc_tokenizer_read(char const* json, size_t bytes, trtc_tokenizer** tokenizer)
{
    nothingYet(tokenizer);
    return guarded(
        [&]
        {
            needs(json, "json");
            needs(tokenizer, "tokenizer");
            auto made = std::make_unique<trtc_tokenizer>();
            made->tokenizer = std::make_shared<Tokenizer>(json, bytes, "What was given", TRTC_ERROR_CONFIG);
            *tokenizer = made.release();
        });
}

void trtc_tokenizer_free(trtc_tokenizer** tokenizer)
{
    freed(tokenizer);
}

size_t trtc_tokenizer_size(trtc_tokenizer const* tokenizer)
{
    return tokenizer == nullptr ? 0 : static_cast<size_t>(tokenizer->tokenizer->size());
}

trtc_status trtc_tokenizer_encode(
    trtc_tokenizer const* tokenizer, char const* text, size_t bytes, int32_t special, int64_t** tokens, size_t* count)
{
    return guarded(
        [&]
        {
            needs(tokenizer, "tokenizer");
            needs(text, "text");
            needs(tokens, "tokens");
            needs(count, "count");
            *tokens = nullptr;
            *count = 0;
            auto const found = tokenizer->tokenizer->encode({text, bytes}, special != 0);
            void* const made = copied(reinterpret_cast<char const*>(found.data()), found.size() * sizeof(int64_t));
            *tokens = static_cast<int64_t*>(made);
            *count = found.size();
        });
}

void trtc_tokens_free(int64_t** tokens)
{
    if (tokens != nullptr)
    {
        std::free(*tokens);
        *tokens = nullptr;
    }
}

trtc_status trtc_tokenizer_decode(
    trtc_tokenizer const* tokenizer, int64_t const* tokens, size_t count, char** text, size_t* bytes)
{
    return guarded(
        [&]
        {
            needs(tokenizer, "tokenizer");
            needs(text, "text");
            needs(bytes, "bytes");
            *text = nullptr;
            *bytes = 0;
            auto const given = tokensOf(tokens, count);
            std::string const found = tokenizer->tokenizer->decode(given.data(), given.size());
            *text = copied(found.data(), found.size());
            *bytes = found.size();
        });
}

trtc_status trtc_detokenizer_new(
    trtc_tokenizer const* tokenizer, int64_t const* before, size_t count, trtc_detokenizer** detokenizer)
{
    nothingYet(detokenizer);
    return guarded(
        [&]
        {
            needs(tokenizer, "tokenizer");
            needs(detokenizer, "detokenizer");
            auto const tokens = tokensOf(before, count);
            std::shared_ptr<Tokenizer const> const held = tokenizer->tokenizer;
            *detokenizer = new trtc_detokenizer{held, Detokenizer(*held, tokens.data(), tokens.size()), "", {}};
        });
}

void trtc_detokenizer_free(trtc_detokenizer** detokenizer)
{
    freed(detokenizer);
}

trtc_status trtc_detokenizer_add(trtc_detokenizer* detokenizer, int64_t token, char const** text, size_t* bytes)
{
    return textOf(detokenizer, text, bytes, &token);
}

trtc_status trtc_detokenizer_rest(trtc_detokenizer* detokenizer, char const** text, size_t* bytes)
{
    return textOf(detokenizer, text, bytes, nullptr);
}

trtc_status trtc_generate_new(trtc_session const* session, trtc_tokenizer const* tokenizer, int64_t const* prompt,
    size_t count, trtc_generate_options const* options, trtc_generation** generation)
{
    nothingYet(generation);
    return guarded(
        [&]
        {
            needs(session, "session");
            needs(generation, "generation");
            GenerateOptions const given = optionsOf(options);
            *generation = new trtc_generation{Generation(session->loaded,
                tokenizer == nullptr ? nullptr : tokenizer->tokenizer, tokensOf(prompt, count), given)};
        });
}

void trtc_generate_free(trtc_generation** generation)
{
    freed(generation);
}

trtc_status trtc_generate_next(trtc_generation* generation, trtc_piece* piece)
{
    return guarded(
        [&]
        {
            needs(generation, "generation");
            needs(piece, "piece");
            Claim const claim(generation->generation.sequences().states());
            generation->generation.next(*piece);
        });
}

} // extern "C"
