// What several threads may do at once, and what they are refused; the tests run it under ThreadSanitizer.
//   check_threads BUNDLE LIBONNXRUNTIME TEXT_BUNDLE
// Threads share a session and a tokenizer, each with states, detokenizers and answers of its own; then all of them use
// the same states, of which all but one at a time are refused. Prints `ok`, or what went wrong.

#include "trt_compress/runtime.hpp"

#include <atomic>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

namespace
{

constexpr int kTHREADS = 4, kRUNS = 20;

std::atomic<int> gRefused{0};

trtc_session_options optionsOf(char const* library)
{
    auto options = trt_compress::make<trtc_session_options>();
    options.onnxruntime = library;
    options.threads = 1;
    return options;
}

struct Buffers
{
    std::vector<std::vector<char>> memory;
    std::vector<trtc_tensor> inputs, outputs;

    explicit Buffers(trt_compress::Session const& session)
    {
        for (bool const isInput : {true, false})
        {
            for (trtc_tensor_info const& info : isInput ? session.inputs() : session.outputs())
            {
                trtc_tensor tensor = {};
                size_t bytes = trtc_dtype_bytes(info.dtype);
                tensor.name = info.name;
                tensor.dtype = info.dtype;
                tensor.rank = info.rank;
                for (int32_t axis = 0; axis < info.rank; ++axis)
                {
                    tensor.shape[axis] = info.shape[axis] < 0 ? 1 : info.shape[axis];
                    bytes *= static_cast<size_t>(tensor.shape[axis]);
                }
                memory.emplace_back(bytes, char{0});
                tensor.data = memory.back().data();
                tensor.bytes = bytes;
                (isInput ? inputs : outputs).push_back(tensor);
            }
        }
    }
};

void together(std::vector<std::thread>& threads)
{
    for (std::thread& each : threads)
    {
        each.join();
    }
    threads.clear();
}

void check(bool holds, char const* what)
{
    if (!holds)
    {
        std::printf("%s\n", what);
        std::exit(1);
    }
}

} // namespace

int main(int count, char** arguments)
{
    if (count != 4)
    {
        return 2;
    }
    trt_compress::Session const session(arguments[1], optionsOf(arguments[2]));
    std::vector<std::vector<char>> results(kTHREADS);
    std::vector<std::thread> threads;
    for (int number = 0; number < kTHREADS; ++number)
    {
        threads.emplace_back(
            [&, number]
            {
                trt_compress::States const states(session);
                Buffers buffers(session);
                for (int run = 0; run < kRUNS; ++run)
                {
                    states.run(buffers.inputs, buffers.outputs);
                }
                results[static_cast<size_t>(number)] = buffers.memory.back();
            });
    }
    together(threads);
    for (auto const& each : results)
    {
        check(each == results[0], "two threads got different results");
    }
    trt_compress::States const shared(session);
    std::atomic<int> passed{0};
    for (int number = 0; number < kTHREADS; ++number)
    {
        threads.emplace_back(
            [&]
            {
                Buffers buffers(session);
                for (int run = 0; run < kRUNS; ++run)
                {
                    trtc_status const status = trtc_run(shared.get(), buffers.inputs.data(), buffers.inputs.size(),
                        buffers.outputs.data(), buffers.outputs.size());
                    passed += status == TRTC_OK;
                    gRefused += status == TRTC_ERROR_BUSY && std::string(trtc_last_error()).back() == '.';
                }
            });
    }
    together(threads);
    check(passed > 0 && passed + gRefused == kTHREADS * kRUNS, "a run was neither done nor refused");
    trt_compress::Session const writer(arguments[3], optionsOf(arguments[2]));
    trt_compress::Tokenizer const tokenizer(writer);
    std::vector<std::string> answers(kTHREADS);
    for (int number = 0; number < kTHREADS; ++number)
    {
        threads.emplace_back(
            [&, number]
            {
                auto options = trt_compress::make<trtc_generate_options>();
                options.max_new = kRUNS;
                options.ignore_stop_tokens = 1;
                trt_compress::Generation const generation(writer, tokenizer, tokenizer.encode("the fox"), options);
                trtc_piece piece;
                do
                {
                    piece = generation.next();
                    answers[static_cast<size_t>(number)].append(piece.text, piece.bytes);
                }
                while (piece.reason == TRTC_GOES_ON);
            });
    }
    together(threads);
    for (std::string const& each : answers)
    {
        check(!each.empty() && each == answers[0], "two threads wrote different answers");
    }
    std::printf("ok\n");
    return 0;
}
