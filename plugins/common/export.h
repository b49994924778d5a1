// Marks the few functions that a library shows; everything else is hidden.
#pragma once

#define TRTC_EXPORT extern "C" __attribute__((visibility("default")))
