// What the manifest's `preprocess` says of an input.
#pragma once

#include "error.h"
#include "loaded.h"

#include <algorithm>
#include <cmath>

namespace trtc::runtime
{

//! A number of `preprocess`, of a list that of a channel or its only one. Throws Error: it is none.
inline double numberAt(Json const& settings, char const* name, size_t channel, double usual)
{
    Json const* const found = settings.find(name);
    Json const* each = found;
    if (found != nullptr && found->is(Json::Kind::kLIST))
    {
        each = found->items.empty()
            ? nullptr
            : &found->items[found->items.size() == 1 ? 0 : std::min(channel, found->items.size() - 1)];
    }
    each = each != nullptr && each->is(Json::Kind::kNULL) ? nullptr : each;
    double const value = each == nullptr ? usual : each->number;
    bool const isNumber = each == nullptr || each->is(Json::Kind::kINT) || each->is(Json::Kind::kFLOAT);
    if (!isNumber || !std::isfinite(value) || std::fabs(value) > 1e9)
    {
        throw bundleError(
            std::string("'preprocess.") + name + "' is no number that it may be; export the bundle again.");
    }
    return value;
}

//! The input that `preprocess` names, else the first.
inline Port const& preparedInput(Loaded const& loaded)
{
    Json const* const name = loaded.bundle.manifest().preprocess.find("input");
    for (Port const* port : loaded.inputs)
    {
        if (name != nullptr && (port->name == name->text || port->whole == name->text))
        {
            return *port;
        }
    }
    return *loaded.inputs.front();
}

} // namespace trtc::runtime
