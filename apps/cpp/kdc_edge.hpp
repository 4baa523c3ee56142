// kdc-edge for C++17: kdc_edge::open(folder).draw({prompt, seed}). Headers alone; needs onnxruntime, utf8proc, nlohmann/json.
#pragma once

#include "kdc_edge/onnxruntime.hpp"
