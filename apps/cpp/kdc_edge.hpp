// kdc-edge for C++17: kdc_edge::open(folder).draw({prompt, seed}). Headers over onnxruntime, utf8proc and
// nlohmann/json.
#pragma once

#include "kdc_edge/onnxruntime.hpp"
