// What the manifest says of graphs, states and procedure, typed and checked: whoever has one may look up every name in
// it.
#pragma once

#include "json.h"
#include "trt_compress/runtime.h"

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace trtc::runtime
{

//! Multiply a size by a length that is not negative; false: it would be more than memory has.
inline bool multiply(size_t& size, int64_t by) noexcept
{
    return !__builtin_mul_overflow(size, static_cast<size_t>(by), &size) && size <= SIZE_MAX / 4;
}

//! The length of an axis: a number, or a symbol that means the same number in the whole bundle.
struct Dim
{
    int64_t length = 0;
    std::string symbol; //!< "": it is a number

    bool isNumber() const noexcept
    {
        return symbol.empty();
    }

    bool operator==(Dim const& other) const
    {
        return length == other.length && symbol == other.symbol;
    }
};

using Dims = std::vector<Dim>;

struct TensorInfo
{
    std::string name;
    std::string dtype;
    Dims shape;
};

struct Graph
{
    std::string name, file, role;
    std::vector<TensorInfo> inputs, outputs;
};

struct Link
{
    std::string source, to; //!< `graph.tensor`
};

struct State
{
    std::optional<std::string> input, output, name;
    std::string graph, dtype, kind;
    Dims shape;
    Json initial;
    std::optional<int64_t> capacity, layer;
    std::string shared; //!< canonical text of what graphs that share it may not differ in

    std::string key() const
    {
        return name ? *name : graph + "." + (input ? *input : output ? *output : "");
    }
};

struct Range
{
    int64_t min = 0, opt = 0, max = 0;
};

//! A symbol whose length is chosen by whoever runs the bundle.
struct Capacity
{
    std::string symbol;
    std::optional<std::string> used;
    std::map<std::string, std::optional<int64_t>> adds; //!< by graph; none: as many as it reads tokens
    int64_t multiple = 1;

    //! Slots that have to be there before these graphs run: see Capacity.needed of the Python package.
    int64_t needed(std::vector<std::string> const& names, int64_t held, int64_t tokens) const;
};

struct Pass
{
    std::vector<std::string> graphs;
    Dim tokens;
    std::string logits; //!< `graph.tensor`; "": none
    std::string rows;
    bool whole = false;
};

struct Media
{
    std::vector<std::string> graphs;
    std::optional<int64_t> token, rows;
};

struct Upkeep
{
    std::string graph, after;
    std::optional<std::string> capacity;
    std::optional<int64_t> atLeast;
};

//! How sequences of tokens are read; `trt_compress.format.procedure` says what every field means.
struct Procedure
{
    Pass prompt, step;
    std::map<std::string, std::string> feeds;
    std::string position;
    std::vector<Upkeep> upkeep;
    std::vector<Media> media;
    std::optional<Pass> score;
};

//! What makes tokens of a text; `trt_compress.format.text` says what every field means.
struct TextInfo
{
    std::string tokenizer; //!< a file
    std::vector<int64_t> stop;
    std::optional<int64_t> context;
    Json generation;
};

struct FileInfo
{
    std::string sha256;
    int64_t bytes = 0;
};

struct Manifest
{
    std::string name, digest;
    std::vector<Graph> graphs;
    std::vector<Link> links;
    std::vector<State> states;
    std::map<std::string, Range> lengths;
    std::vector<Capacity> capacities;
    std::optional<Procedure> procedure;
    std::optional<TextInfo> text;
    std::map<std::string, FileInfo> files;
    std::set<std::string> quantizedGraphs; //!< those with weights that share scales
    std::vector<std::pair<std::string, std::string>>
        recorded;                    //!< files of lowered graphs and engines, and their hashes
    std::vector<std::string> needed; //!< files that other parts name
    bool hasOperators = false;       //!< some of the domain `trt_compress`
    Json preprocess, postprocess;

    Graph const* graph(std::string const& wanted) const;
    //! The state that a key means, as the first graph has it.
    State const* state(std::string const& key) const;
    Capacity const* capacity(std::string const& symbol) const;
};

//! Read and check a manifest. Throws Error (TRTC_ERROR_BUNDLE).
//! `checkDigest` false is for tests of what stands behind it.
Manifest readManifest(char const* data, size_t bytes, std::string const& where, bool checkDigest = true);

//! Why a path cannot stand in a bundle; "": it can.
std::string pathProblem(std::string const& path);

//! What does not fit between graphs, links, states, capacities and procedure: the first of it, or "".
std::string wiringProblem(Manifest const& manifest);

//! The C interface's dtype of a name; TRTC_DTYPE_NONE: it has none.
trtc_dtype dtypeOf(std::string const& name);

//! The graph of `graph.tensor`.
inline std::string graphOf(std::string const& tensor)
{
    return tensor.substr(0, tensor.find('.'));
}

//! The tensor of `graph.tensor`.
inline std::string tensorOf(std::string const& tensor)
{
    auto const at = tensor.find('.');
    return at == std::string::npos ? "" : tensor.substr(at + 1);
}

} // namespace trtc::runtime
