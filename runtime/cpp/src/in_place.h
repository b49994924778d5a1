// Which states of a graph may be updated in place: what leaves has the memory of what came in.
// `trt_compress.runtime.backends.in_place` says when that is so, and why.
#pragma once

#include "onnx_file.h"

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace trtc::runtime
{

//! By op type of ours: output and the input that it may be written into, by their numbers.
using Aliases = std::map<std::string, std::vector<std::pair<size_t, size_t>>>;

//! What a native library says of its operators. Throws Error (TRTC_ERROR_PLUGIN): it says nothing that can be read.
Aliases aliasesOf(std::string const& library);

//! The operators that have to run natively for a state to be updated in place, by the state's output: its writer, and
//! its readers of ours. `states`: output → input. Those that need memory of their own are left out.
std::map<std::string, std::vector<OnnxNode const*>> writersOf(std::vector<OnnxNode> const& nodes,
    std::map<std::string, std::string> const& states, std::set<std::string> const& outputs, Aliases const& aliases);

//! Those of them whose nodes are native, by the names of the nodes of ours that are.
std::set<std::string> inPlace(std::map<std::string, std::vector<OnnxNode const*>> const& writers,
    std::vector<OnnxNode> const& nodes, std::set<std::string> const& native);

extern char const* const kDOMAIN; //!< of our operators

} // namespace trtc::runtime
