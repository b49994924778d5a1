// What the examples that read standard input share.
#pragma once

#include "trt_compress/runtime.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

namespace example
{

//! Memory for an output; lengths that may be chosen are `most` at most.
struct Output
{
    trtc_tensor_info info;
    std::vector<char> memory;

    explicit Output(trtc_tensor_info const& of, int64_t most = 1)
        : info(of)
    {
        size_t bytes = trtc_dtype_bytes(of.dtype);
        for (int32_t axis = 0; axis < of.rank; ++axis)
        {
            bytes *= static_cast<size_t>(of.shape[axis] < 0 ? most : of.shape[axis]);
        }
        memory.resize(bytes);
    }

    trtc_tensor tensor()
    {
        trtc_tensor made = {};
        made.name = info.name;
        made.data = memory.data();
        made.bytes = memory.size();
        return made;
    }

    float const* numbers() const
    {
        return reinterpret_cast<float const*>(memory.data());
    }

    size_t count() const
    {
        return memory.size() / sizeof(float);
    }
};

//! The output of this name, else the first.
inline Output outputNamed(trt_compress::Session const& session, char const* name)
{
    auto const all = session.outputs();
    for (trtc_tensor_info const& info : all)
    {
        if (std::string(info.name) == name)
        {
            return Output(info);
        }
    }
    return Output(all.front());
}

//! Its largest number.
inline size_t best(Output const& output)
{
    float const* const numbers = output.numbers();
    return static_cast<size_t>(std::max_element(numbers, numbers + output.count()) - numbers);
}

//! The name of a class, or its number.
inline std::string labelOf(trt_compress::Session const& session, size_t index)
{
    char const* const label = trtc_session_label(session.get(), index);
    return label == nullptr ? std::to_string(index) : label;
}

//! Read whole things of a size from standard input: how much of the last one there was.
inline size_t readInto(void* memory, size_t bytes)
{
    return std::fread(memory, 1, bytes, stdin);
}

//! Times what is done, and prints at last what the times support saying.
class Latencies
{
public:
    template <typename Call>
    void time(Call const& call)
    {
        auto const before = std::chrono::steady_clock::now();
        call();
        auto const took = std::chrono::steady_clock::now() - before;
        mTimes.push_back(std::chrono::duration_cast<std::chrono::nanoseconds>(took).count());
    }

    void print() const
    {
        if (mTimes.empty())
        {
            return;
        }
        char* json = nullptr;
        size_t bytes = 0;
        trt_compress::check(trtc_latency_summary(mTimes.data(), mTimes.size(), &json, &bytes));
        std::printf("latency %s\n", json);
        trtc_bytes_free(&json);
    }

private:
    std::vector<int64_t> mTimes;
};

//! Open a bundle, do something with it, and say what failed.
template <typename Call>
int withSession(char const* bundle, char const* library, Call const& call)
{
    try
    {
        auto options = trt_compress::make<trtc_session_options>();
        options.onnxruntime = library;
        trt_compress::Session const session(bundle, options);
        call(session);
        return 0;
    }
    catch (std::exception const& error)
    {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
}

} // namespace example
