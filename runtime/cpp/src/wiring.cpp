// Whether graphs, links, states, capacities and procedure of a manifest fit each other.

#include "error.h"
#include "manifest.h"
#include "record.h"

#include <algorithm>
#include <tuple>

namespace trtc::runtime
{
namespace
{

constexpr int64_t kMOST = (int64_t{1} << 31) - 1;
constexpr int64_t kMOST_TOKENS = int64_t{1} << 24; // of one run: more would be no run, and its memory is made at once

using Problem = std::string;
using Tensors = std::map<std::string, TensorInfo const*>;

std::string quoted(std::string const& text)
{
    return "'" + shown(text) + "'";
}

struct Checker
{
    Manifest const& manifest;
    std::map<std::string, size_t> order;
    Tensors inputs, outputs;
    std::map<std::string, std::string> linked; //!< input → output
    std::set<std::string> held;                //!< inputs that are states

    explicit Checker(Manifest const& of)
        : manifest(of)
    {
        for (size_t at = 0; at < of.graphs.size(); ++at)
        {
            Graph const& graph = of.graphs[at];
            order.emplace(graph.name, at);
            for (auto const& info : graph.inputs)
            {
                inputs[graph.name + "." + info.name] = &info;
            }
            for (auto const& info : graph.outputs)
            {
                outputs[graph.name + "." + info.name] = &info;
            }
        }
    }

    Problem graphs() const
    {
        if (manifest.graphs.empty())
        {
            return "'graphs' is empty; a bundle has at least one graph";
        }
        if (order.size() != manifest.graphs.size())
        {
            return "two graphs have one name";
        }
        return "";
    }

    Problem links()
    {
        std::set<std::string> fed;
        for (Link const& link : manifest.links)
        {
            std::string const what = quoted(link.source) + " is linked to " + quoted(link.to);
            auto const source = outputs.find(link.source), to = inputs.find(link.to);
            if (source == outputs.end())
            {
                return what + " but is no output of a graph";
            }
            if (to == inputs.end())
            {
                return what + ", which is no input of a graph";
            }
            if (order.at(graphOf(link.source)) >= order.at(graphOf(link.to)))
            {
                return what + ", which runs no later";
            }
            if (source->second->dtype != to->second->dtype)
            {
                return what + ", which is " + to->second->dtype + " and not " + source->second->dtype;
            }
            if (!fed.insert(link.to).second)
            {
                return "input " + quoted(link.to) + " is fed twice";
            }
            linked[link.to] = link.source;
        }
        for (State const& state : manifest.states)
        {
            if (state.input && !fed.insert(state.graph + "." + *state.input).second)
            {
                return "input " + quoted(state.graph + "." + *state.input) + " is fed twice";
            }
        }
        return "";
    }

    Problem states()
    {
        std::map<std::string, State const*> first;
        std::set<std::string> read, written, perGraph;
        for (State const& state : manifest.states)
        {
            std::string const key = state.key(), what = "the state " + quoted(key);
            if (order.count(state.graph) == 0)
            {
                return what + " is of the graph " + quoted(state.graph) + ", which there is not";
            }
            if (state.name && (state.name->empty() || state.name->find('.') != std::string::npos))
            {
                return "the state name " + quoted(*state.name) + " has a dot, or nothing";
            }
            if (!perGraph.insert(state.graph + "\n" + key).second)
            {
                return "graph " + quoted(state.graph) + " has two states named " + quoted(key);
            }
            for (auto const& [port, tensors, does] :
                {std::tuple(&state.input, &inputs, "enters"), std::tuple(&state.output, &outputs, "leaves as")})
            {
                if (!*port)
                {
                    continue;
                }
                auto const found = tensors->find(state.graph + "." + **port);
                if (found == tensors->end())
                {
                    return what + " " + does + " " + quoted(state.graph + "." + **port)
                        + ", which is no such tensor of a graph";
                }
                if (found->second->dtype != state.dtype)
                {
                    return what + " is " + state.dtype + ", and " + quoted(found->first) + " is "
                        + found->second->dtype;
                }
                if (found->second->shape.size() != state.shape.size())
                {
                    return what + " has " + std::to_string(state.shape.size()) + " axes, and " + quoted(found->first)
                        + " has " + std::to_string(found->second->shape.size());
                }
            }
            auto const [same, isFirst] = first.emplace(key, &state);
            if (!isFirst && same->second->shared != state.shared)
            {
                return "the graphs " + quoted(same->second->graph) + " and " + quoted(state.graph) + " share "
                    + what.substr(4) + " and differ in it";
            }
            if (state.input)
            {
                read.insert(key);
                held.insert(state.graph + "." + *state.input);
            }
            if (state.output)
            {
                written.insert(key);
            }
        }
        for (auto const& [key, state] : first)
        {
            if (read.count(key) == 0)
            {
                return "the state " + quoted(key) + " is written, and no graph reads it";
            }
            if (written.count(key) == 0 && state->initial.find("file") == nullptr)
            {
                return "the state " + quoted(key) + " is read, and no graph writes it";
            }
        }
        return "";
    }

    Problem lengths() const
    {
        for (auto const& [symbol, length] : manifest.lengths)
        {
            if (symbol == "batch")
            {
                return "'lengths' has 'batch', whose range stands in 'batch'";
            }
            if (!(0 <= length.min && length.min <= length.opt && length.opt <= length.max && length.max <= kMOST))
            {
                return "the lengths of " + quoted(symbol) + " are not in ascending order from 0 to "
                    + std::to_string(kMOST);
            }
        }
        return "";
    }

    Problem capacities() const
    {
        std::set<std::string> symbols;
        for (Capacity const& capacity : manifest.capacities)
        {
            std::string const what = "the capacity " + quoted(capacity.symbol);
            auto const length = manifest.lengths.find(capacity.symbol);
            if (!symbols.insert(capacity.symbol).second)
            {
                return what + " is listed twice";
            }
            if (length == manifest.lengths.end())
            {
                return what + " has no lengths in 'lengths'";
            }
            if (length->second.min < 1 || capacity.multiple < 1 || capacity.multiple > length->second.max
                || length->second.max % capacity.multiple != 0)
            {
                return what + " has " + std::to_string(length->second.min) + " to " + std::to_string(length->second.max)
                    + " slots in multiples of " + std::to_string(capacity.multiple);
            }
            bool isUsed = false;
            for (State const& state : manifest.states)
            {
                bool const has = std::any_of(state.shape.begin(), state.shape.end(),
                    [&](Dim const& dim) { return dim.symbol == capacity.symbol; });
                isUsed = isUsed || has;
                if (has && state.capacity)
                {
                    return what + " is in a state that has a capacity of its own";
                }
                if (capacity.used && state.key() == *capacity.used
                    && !(state.kind == "length" && state.dtype == "int64" && state.shape.size() == 1
                        && state.shape[0].symbol == "batch"))
                {
                    return what + " counts by " + quoted(*capacity.used)
                        + ", which is no state of the kind 'length', int64 [batch]";
                }
            }
            if (!isUsed)
            {
                return what + " is in no state's shape";
            }
            if (capacity.used && manifest.state(*capacity.used) == nullptr)
            {
                return what + " names the state " + quoted(*capacity.used) + ", which there is not";
            }
            for (auto const& [graph, count] : capacity.adds)
            {
                if (order.count(graph) == 0)
                {
                    return what + " names the graph " + quoted(graph) + ", which there is not";
                }
            }
        }
        return "";
    }

    Problem procedure() const
    {
        Procedure const& of = *manifest.procedure;
        for (auto const& [name, what] : of.feeds)
        {
            auto const found = inputs.find(name);
            if (found == inputs.end())
            {
                return "'procedure.feeds' names " + quoted(name) + ", which is no input of a graph";
            }
            if (!isWord("FEEDS", what))
            {
                return "'procedure.feeds' gives " + quoted(name) + " " + quoted(what) + ", which is not known";
            }
            size_t const axes = what == "count" || what == "seen" ? 1 : 2;
            if ((found->second->dtype != "int64" && found->second->dtype != "int32")
                || found->second->shape.size() != axes)
            {
                return "'procedure.feeds' gives " + quoted(name) + " '" + what + "', which are int64 or int32 of "
                    + std::to_string(axes) + " axes";
            }
        }
        if (of.position != "seen" && of.position != "kept" && manifest.capacity(of.position) == nullptr)
        {
            return "'procedure.position' is " + quoted(of.position) + "; it is seen, kept, or a capacity";
        }
        std::vector<std::pair<std::string, Pass const*>> passes = {{"prompt", &of.prompt}, {"step", &of.step}};
        if (of.score)
        {
            passes.emplace_back("score", &*of.score);
        }
        for (auto const& [name, pass] : passes)
        {
            Problem const found = passProblem("'procedure." + name + "'", *pass, name == "step");
            if (!found.empty())
            {
                return found;
            }
        }
        for (Upkeep const& each : of.upkeep)
        {
            std::string const what = "'procedure.upkeep' of " + quoted(each.graph);
            Problem const found = turnProblem(what, {each.graph}, {"flush", "compact"}, true);
            if (!found.empty())
            {
                return found;
            }
            if (!isWord("MOMENTS", each.after) || each.capacity.has_value() != each.atLeast.has_value()
                || (each.capacity && manifest.capacity(*each.capacity) == nullptr) || each.atLeast.value_or(1) < 1)
            {
                return what + " says no moment, or no capacity with the slots from which on it is due";
            }
        }
        std::set<int64_t> tokens;
        for (Media const& each : of.media)
        {
            Problem const found = turnProblem("'procedure.media'", each.graphs, {"vision", "audio", "text"}, false);
            if (!found.empty())
            {
                return found;
            }
            if (each.token.has_value() != each.rows.has_value() || each.token.value_or(0) < 0
                || each.token.value_or(0) > kMOST || each.rows.value_or(1) < 1 || each.rows.value_or(1) > kMOST
                || (each.token && !tokens.insert(*each.token).second))
            {
                return "'procedure.media' has a token and rows that do not go together";
            }
        }
        return "";
    }

    Problem passProblem(std::string const& what, Pass const& pass, bool isStep) const
    {
        int64_t low = pass.tokens.length, high = low;
        if (!pass.tokens.isNumber())
        {
            auto const found = manifest.lengths.find(pass.tokens.symbol);
            if (found == manifest.lengths.end())
            {
                return what + " reads " + quoted(pass.tokens.symbol) + " tokens, whose lengths are not in 'lengths'";
            }
            low = found->second.min;
            high = found->second.max;
        }
        if (low < 1 || high > kMOST_TOKENS || (isStep && low > 1))
        {
            return what + " reads " + std::to_string(low) + " to " + std::to_string(high) + " tokens in a run; it is "
                + (isStep ? "1" : "1 to " + std::to_string(kMOST_TOKENS));
        }
        std::set<std::string> roles = {"prefill", "step", "embed", "head"};
        if (what == "'procedure.score'")
        {
            roles.insert("score");
        }
        Problem const found = turnProblem(what, pass.graphs, roles, true);
        if (!found.empty())
        {
            return found;
        }
        bool const isFed = std::any_of(manifest.procedure->feeds.begin(), manifest.procedure->feeds.end(),
            [&](auto const& feed)
            {
                return feed.second == "tokens"
                    && std::find(pass.graphs.begin(), pass.graphs.end(), graphOf(feed.first)) != pass.graphs.end();
            });
        if (!isFed)
        {
            return what + " is given no tokens by 'procedure.feeds'";
        }
        auto const logits = outputs.find(pass.logits);
        if (!isWord("ROWS", pass.rows) || logits == outputs.end()
            || std::find(pass.graphs.begin(), pass.graphs.end(), graphOf(pass.logits)) == pass.graphs.end())
        {
            return what + " names the logits " + quoted(pass.logits) + " with the rows " + quoted(pass.rows)
                + ", which is no output of its graphs";
        }
        size_t const axes = pass.rows == "all" ? 3 : 2;
        if (logits->second->shape.size() != axes || (pass.rows == "next" && what != "'procedure.score'"))
        {
            return what + " gives the rows \"" + pass.rows + "\" of " + quoted(pass.logits) + ", which has "
                + std::to_string(logits->second->shape.size()) + " axes";
        }
        return "";
    }

    //! Whether graphs have a role that is theirs in a turn, and (`isAlone`) every input is given in it.
    Problem turnProblem(std::string const& what, std::vector<std::string> const& names,
        std::set<std::string> const& roles, bool isAlone) const
    {
        if (names.empty())
        {
            return what + " names no graph";
        }
        size_t before = 0;
        for (size_t at = 0; at < names.size(); ++at)
        {
            auto const found = order.find(names[at]);
            if (found == order.end())
            {
                return what + " names the graph " + quoted(names[at]) + ", which there is not";
            }
            if (at != 0 && found->second <= before)
            {
                return what + " names its graphs in another order than 'graphs', or twice";
            }
            before = found->second;
            Graph const& graph = manifest.graphs[found->second];
            if (roles.count(graph.role) == 0)
            {
                return what + " names " + quoted(graph.name) + ", which has the role '" + graph.role + "'";
            }
            for (TensorInfo const& info : graph.inputs)
            {
                std::string const whole = graph.name + "." + info.name;
                auto const link = linked.find(whole);
                bool const isLinked =
                    link != linked.end() && std::find(names.begin(), names.end(), graphOf(link->second)) != names.end();
                bool const isFed = manifest.procedure->feeds.count(whole) != 0;
                if (isAlone && !isLinked && !isFed && held.count(whole) == 0)
                {
                    return what + " runs " + quoted(graph.name) + ", and nothing gives it its input "
                        + quoted(info.name);
                }
            }
        }
        return "";
    }

    //! Of a bundle without a procedure: no graph waits for a turn that nobody gives it.
    Problem roles() const
    {
        for (Graph const& graph : manifest.graphs)
        {
            for (char const* role : {"prefill", "step", "flush", "compact", "score"})
            {
                if (graph.role == role)
                {
                    return "graph " + quoted(graph.name) + " has the role '" + graph.role
                        + "', and no 'procedure' says when it is run";
                }
            }
        }
        return "";
    }
};

} // namespace

std::string wiringProblem(Manifest const& manifest)
{
    Checker checker(manifest);
    Problem found = checker.graphs();
    found = found.empty() ? checker.links() : found;
    found = found.empty() ? checker.states() : found;
    found = found.empty() ? checker.lengths() : found;
    found = found.empty() ? checker.capacities() : found;
    return !found.empty() ? found : manifest.procedure ? checker.procedure() : checker.roles();
}

} // namespace trtc::runtime
