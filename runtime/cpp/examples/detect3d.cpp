// Find objects around a car, frame by frame: what the bundle remembers of one frame helps in the next.
//   detect3d BUNDLE FOLDER [LIBONNXRUNTIME]
// FOLDER has a folder for each frame, 0, 1, 2, …, and in it a file for each input, INPUT.bin: its elements as they lie
// in memory, for one rig (a batch of 1). Prints the boxes whose score is 0.3 or more, and at last the latencies as
// JSON.

#include "common.h"

#include <fstream>
#include <iterator>

namespace
{

constexpr float kTHRESHOLD = 0.3F;
constexpr int64_t kMOST = 4096; // of lengths that the bundle leaves open

std::vector<char> contentOf(std::string const& path)
{
    std::ifstream file(path, std::ios::binary);
    if (!file)
    {
        throw std::runtime_error("'" + path + "' cannot be read.");
    }
    return {(std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>()};
}

bool isThere(std::string const& path)
{
    return std::ifstream(path).good();
}

void detect(trt_compress::Session const& session, std::string const& folder)
{
    trt_compress::States const states(session);
    auto const infos = session.inputs();
    std::vector<example::Output> results;
    size_t boxes = 0, scores = 0;
    for (trtc_tensor_info const& info : session.outputs())
    {
        boxes = std::string(info.name) == "boxes" ? results.size() : boxes;
        scores = std::string(info.name) == "scores" ? results.size() : scores;
        results.emplace_back(info, kMOST);
    }
    if (boxes == scores)
    {
        throw std::runtime_error("The bundle has no outputs 'boxes' and 'scores'; give that of a detector.");
    }
    std::vector<trtc_tensor> outputs = {results[boxes].tensor(), results[scores].tensor()};
    example::Latencies latencies;
    for (size_t number = 0;; ++number)
    {
        std::string const place = folder + "/" + std::to_string(number) + "/";
        if (infos.empty() || !isThere(place + infos[0].name + ".bin"))
        {
            break;
        }
        std::vector<std::vector<char>> contents;
        std::vector<trtc_tensor> inputs;
        for (trtc_tensor_info const& info : infos)
        {
            contents.push_back(contentOf(place + info.name + ".bin"));
            trtc_tensor tensor = {};
            tensor.name = info.name;
            tensor.dtype = info.dtype;
            tensor.rank = info.rank;
            for (int32_t axis = 0; axis < info.rank; ++axis)
            {
                tensor.shape[axis] = info.shape[axis] < 0 ? 1 : info.shape[axis];
            }
            tensor.data = contents.back().data();
            tensor.bytes = contents.back().size();
            if (tensor.bytes != example::Output(info).memory.size())
            {
                throw std::runtime_error("'" + place + info.name + ".bin' has " + std::to_string(tensor.bytes)
                    + " bytes, and the input takes " + std::to_string(example::Output(info).memory.size()) + ".");
            }
            inputs.push_back(tensor);
        }
        latencies.time([&] { states.run(inputs, outputs); });
        trtc_tensor const& box = outputs[0];
        trtc_tensor const& score = outputs[1];
        auto const count = static_cast<size_t>(score.shape[1]);
        size_t const classes = score.rank > 2 ? static_cast<size_t>(score.shape[2]) : 1;
        auto const columns = static_cast<size_t>(box.shape[2]);
        std::printf("frame %zu\n", number);
        for (size_t at = 0; at < count; ++at)
        {
            float const* const own = results[scores].numbers() + at * classes;
            auto const kind = static_cast<size_t>(std::max_element(own, own + classes) - own);
            if (own[kind] < kTHRESHOLD)
            {
                continue;
            }
            std::printf("  %s %.3f at", example::labelOf(session, kind).c_str(), static_cast<double>(own[kind]));
            for (size_t column = 0; column < columns; ++column)
            {
                std::printf(" %.3f", static_cast<double>(results[boxes].numbers()[at * columns + column]));
            }
            std::printf("\n");
        }
    }
    latencies.print();
}

} // namespace

int main(int count, char** arguments)
{
    if (count < 3 || count > 4)
    {
        std::fprintf(stderr,
            "give a bundle, a folder of frames, and the path of libonnxruntime.so where the loader does "
            "not find it\n");
        return 2;
    }
    return example::withSession(arguments[1], count == 4 ? arguments[3] : nullptr,
        [&](trt_compress::Session const& session) { detect(session, arguments[2]); });
}
