// The weights that an ONNX file takes from other files; read without protobuf, as strictly as no writer minds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace trtc::runtime
{

//! A tensor whose data are in another file.
struct Stored
{
    std::string name, location;
    uint64_t offset = 0;
    uint64_t length = 0; //!< 0 where the file does not say: up to its end
    bool hasLength = false;
    bool isWeight = false; //!< an initializer of the main graph
};

//! Every such tensor of an ONNX file, wherever in it it stands. Throws std::invalid_argument: it is no ONNX file.
std::vector<Stored> storedOutside(char const* data, size_t bytes);

} // namespace trtc::runtime
