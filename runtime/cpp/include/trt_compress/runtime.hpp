// The C interface for C++: handles that let go by themselves, errors as exceptions. Nothing else is in the library.
#pragma once

#include "trt_compress/runtime.h"

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace trt_compress
{

//! What a call that failed says; `status` tells which kind it is.
class Error : public std::runtime_error
{
public:
    explicit Error(trtc_status code)
        : std::runtime_error(trtc_last_error())
        , status(code)
    {
    }

    trtc_status status;
};

//! Throw unless a call succeeded.
inline void check(trtc_status status)
{
    if (status != TRTC_OK)
    {
        throw Error(status);
    }
}

template <typename Handle, void (*Free)(Handle**)>
struct Frees
{
    void operator()(Handle* handle) const noexcept
    {
        Free(&handle);
    }
};

//! Options with their size set.
template <typename Options>
Options make()
{
    Options made = {};
    made.size = sizeof made;
    return made;
}

class Session
{
public:
    explicit Session(std::string const& path, trtc_session_options const& options = make<trtc_session_options>())
    {
        trtc_session* made = nullptr;
        check(trtc_session_open(path.c_str(), &options, &made));
        mHandle.reset(made);
    }

    trtc_session* get() const noexcept
    {
        return mHandle.get();
    }

    std::vector<trtc_tensor_info> inputs() const
    {
        return infos(trtc_session_num_inputs(get()), trtc_session_input);
    }

    std::vector<trtc_tensor_info> outputs() const
    {
        return infos(trtc_session_num_outputs(get()), trtc_session_output);
    }

private:
    std::unique_ptr<trtc_session, Frees<trtc_session, trtc_session_free>> mHandle;

    template <typename Look>
    std::vector<trtc_tensor_info> infos(size_t count, Look look) const
    {
        std::vector<trtc_tensor_info> found(count);
        for (size_t at = 0; at < count; ++at)
        {
            check(look(get(), at, &found[at]));
        }
        return found;
    }
};

class States
{
public:
    explicit States(Session const& session, trtc_states_options const& options = make<trtc_states_options>())
    {
        trtc_states* made = nullptr;
        check(trtc_states_new(session.get(), &options, &made));
        mHandle.reset(made);
    }

    trtc_states* get() const noexcept
    {
        return mHandle.get();
    }

    void run(std::vector<trtc_tensor> const& inputs, std::vector<trtc_tensor>& outputs) const
    {
        check(trtc_run(get(), inputs.data(), inputs.size(), outputs.data(), outputs.size()));
    }

private:
    std::unique_ptr<trtc_states, Frees<trtc_states, trtc_states_free>> mHandle;
};

class Sequences
{
public:
    explicit Sequences(Session const& session, trtc_states_options const& options = make<trtc_states_options>())
    {
        trtc_sequences* made = nullptr;
        check(trtc_sequences_new(session.get(), &options, &made));
        mHandle.reset(made);
    }

    trtc_sequences* get() const noexcept
    {
        return mHandle.get();
    }

private:
    std::unique_ptr<trtc_sequences, Frees<trtc_sequences, trtc_sequences_free>> mHandle;
};

class Tokenizer
{
public:
    explicit Tokenizer(Session const& session)
    {
        trtc_tokenizer* made = nullptr;
        check(trtc_tokenizer_open(session.get(), &made));
        mHandle.reset(made);
    }

    trtc_tokenizer* get() const noexcept
    {
        return mHandle.get();
    }

    std::vector<int64_t> encode(std::string const& text, bool special = true) const
    {
        int64_t* tokens = nullptr;
        size_t count = 0;
        check(trtc_tokenizer_encode(get(), text.data(), text.size(), special, &tokens, &count));
        std::unique_ptr<int64_t, Frees<int64_t, trtc_tokens_free>> const held(tokens);
        return {tokens, tokens + count};
    }

    std::string decode(std::vector<int64_t> const& tokens) const
    {
        char* text = nullptr;
        size_t bytes = 0;
        check(trtc_tokenizer_decode(get(), tokens.data(), tokens.size(), &text, &bytes));
        std::unique_ptr<char, Frees<char, trtc_bytes_free>> const held(text);
        return {text, bytes};
    }

private:
    std::unique_ptr<trtc_tokenizer, Frees<trtc_tokenizer, trtc_tokenizer_free>> mHandle;
};

class Generation
{
public:
    Generation(Session const& session, Tokenizer const& tokenizer, std::vector<int64_t> const& prompt,
        trtc_generate_options const& options = make<trtc_generate_options>())
    {
        trtc_generation* made = nullptr;
        check(trtc_generate_new(session.get(), tokenizer.get(), prompt.data(), prompt.size(), &options, &made));
        mHandle.reset(made);
    }

    //! Go on by one token; its text lives until the next call.
    trtc_piece next() const
    {
        trtc_piece piece;
        check(trtc_generate_next(mHandle.get(), &piece));
        return piece;
    }

private:
    std::unique_ptr<trtc_generation, Frees<trtc_generation, trtc_generate_free>> mHandle;
};

} // namespace trt_compress
