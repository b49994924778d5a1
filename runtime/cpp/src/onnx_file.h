// The weights that an ONNX file takes from other files, and its nodes; read without protobuf, as strictly as no writer
// minds.
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

//! A node of a graph, or of a graph inside one of its nodes.
struct OnnxNode
{
    std::string name, opType, domain;
    std::vector<std::string> inputs, outputs; //!< "" where one is left out
    bool isInner = false;
};

//! Every node of the graph; bodies of functions are not the graph's. Throws as above.
std::vector<OnnxNode> nodesOf(char const* data, size_t bytes);

} // namespace trtc::runtime
