// What a state holds before the first run.
#pragma once

#include "bundle.h"

namespace trtc::runtime
{

//! Write the initial value of a state into memory of this shape.
//! `file` is the content of the .npy file that the manifest names, or null. Throws Error: there is no such value.
void fillInitial(
    State const& state, trtc_dtype dtype, Content const* file, std::vector<int64_t> const& shape, char* into);

} // namespace trtc::runtime
