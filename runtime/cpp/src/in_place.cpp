#include "in_place.h"

#include "error.h"
#include "json.h"

#include <algorithm>
#include <cstring>
#include <dlfcn.h>
#include <stdexcept>

namespace trtc::runtime
{

char const* const kDOMAIN = "trt_compress";

namespace
{

//! Of standard operators, those that never give a view of what they read, and are never left out.
char const* const kREADERS[] = {"MatMul", "Gemm", "Shape", "Size", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceMean",
    "ReduceL2", "ArgMax", "TopK"};

bool onlyReads(OnnxNode const& node)
{
    if (node.isInner)
    {
        return false;
    }
    bool const isStandard = node.domain.empty() || node.domain == "ai.onnx";
    return isStandard
        ? std::any_of(std::begin(kREADERS), std::end(kREADERS), [&](char const* each) { return node.opType == each; })
        : node.domain == kDOMAIN;
}

//! The nodes that have run before this one.
std::set<OnnxNode const*> before(OnnxNode const& node, std::map<std::string, OnnxNode const*> const& made)
{
    std::set<OnnxNode const*> seen;
    std::vector<OnnxNode const*> waiting = {&node};
    while (!waiting.empty())
    {
        OnnxNode const& next = *waiting.back();
        waiting.pop_back();
        for (std::string const& name : next.inputs)
        {
            auto const found = made.find(name);
            if (found != made.end() && found->second != &node && seen.insert(found->second).second)
            {
                waiting.push_back(found->second);
            }
        }
    }
    return seen;
}

size_t placeOf(std::vector<std::string> const& names, std::string const& name)
{
    return static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin());
}

} // namespace

Aliases aliasesOf(std::string const& library)
{
    void* const handle = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL); // it stays: ONNX Runtime has it too
    auto const describe =
        handle == nullptr ? nullptr : reinterpret_cast<char const* (*)()>(::dlsym(handle, "trtcDescribe"));
    if (describe == nullptr)
    {
        throw Error(TRTC_ERROR_PLUGIN,
            "'" + shown(library, 300)
                + "' does not say which operators it has; build it again with 'trt-compress plugins build --force'.");
    }
    char const* const text = describe();
    Json said;
    try
    {
        said = parseJson(text, std::strlen(text));
    }
    catch (std::invalid_argument const& error)
    {
        throw Error(TRTC_ERROR_PLUGIN,
            "What '" + shown(library, 300) + "' says of its operators cannot be read (" + error.what()
                + "); build it again with 'trt-compress plugins build --force'.");
    }
    Aliases found;
    auto const listOf = [](Json const& from, char const* name) -> std::vector<Json> const&
    {
        static std::vector<Json> const kNOTHING;
        Json const* const list = from.find(name);
        return list == nullptr ? kNOTHING : list->items;
    };
    for (Json const& each : listOf(said, "operators"))
    {
        Json const* const opType = each.find("op_type");
        std::vector<std::string> names;
        for (Json const& input : listOf(each, "inputs"))
        {
            Json const* const name = input.find("name");
            names.push_back(name == nullptr ? "" : name->text);
        }
        auto const& outputs = listOf(each, "outputs");
        for (size_t at = 0; opType != nullptr && at < outputs.size(); ++at)
        {
            Json const* const alias = outputs[at].find("alias_of");
            size_t const input =
                alias == nullptr || !alias->is(Json::Kind::kSTRING) ? names.size() : placeOf(names, alias->text);
            if (input < names.size())
            {
                found[opType->text].emplace_back(at, input);
            }
        }
    }
    return found;
}

std::map<std::string, std::vector<OnnxNode const*>> writersOf(std::vector<OnnxNode> const& nodes,
    std::map<std::string, std::string> const& states, std::set<std::string> const& outputs, Aliases const& aliases)
{
    std::map<std::string, OnnxNode const*> made;
    std::map<std::string, std::vector<OnnxNode const*>> readers;
    for (OnnxNode const& node : nodes)
    {
        for (std::string const& name : node.outputs)
        {
            if (!node.isInner && !name.empty())
            {
                made[name] = &node;
            }
        }
        for (std::string const& name : node.inputs)
        {
            readers[name].push_back(&node);
        }
    }
    std::map<std::string, std::vector<OnnxNode const*>> found;
    for (auto const& [output, given] : states)
    {
        auto const writer = made.find(output);
        if (writer == made.end() || writer->second->domain != kDOMAIN || outputs.count(given) != 0
            || std::count(writer->second->inputs.begin(), writer->second->inputs.end(), given) != 1)
        {
            continue;
        }
        OnnxNode const& node = *writer->second;
        auto const pairs = aliases.find(node.opType);
        std::pair<size_t, size_t> const pair = {placeOf(node.outputs, output), placeOf(node.inputs, given)};
        std::vector<OnnxNode const*> needed = {&node};
        bool fits = pairs != aliases.end()
            && std::find(pairs->second.begin(), pairs->second.end(), pair) != pairs->second.end();
        auto const waitedFor = before(node, made);
        for (OnnxNode const* const reader : readers[given])
        {
            if (reader != &node)
            {
                fits = fits && onlyReads(*reader) && waitedFor.count(reader) != 0;
                if (reader->domain == kDOMAIN)
                {
                    needed.push_back(reader);
                }
            }
        }
        if (fits)
        {
            found[output] = needed;
        }
    }
    return found;
}

std::set<std::string> inPlace(std::map<std::string, std::vector<OnnxNode const*>> const& writers,
    std::vector<OnnxNode> const& nodes, std::set<std::string> const& native)
{
    std::map<std::string, int> counted;
    for (OnnxNode const& node : nodes)
    {
        counted[node.name] += node.domain == kDOMAIN;
    }
    std::set<std::string> found;
    for (auto const& [output, needed] : writers)
    {
        bool const areNative = std::all_of(needed.begin(), needed.end(), [&](OnnxNode const* node)
            { return !node->name.empty() && counted[node->name] == 1 && native.count(node->name) != 0; });
        if (areNative)
        {
            found.insert(output);
        }
    }
    return found;
}

} // namespace trtc::runtime
