// What the ops over feature maps share: boxes [B, R, 4], count [B], features [B, C, H, W].
#pragma once

#include "../kernel.cuh"
#include "op.h"

namespace deploykit {

// The launchers' number for a type.
inline int element(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kHALF: return kHalf;
    case nvinfer1::DataType::kINT8: return kInt8;
    default: return kFloat;
  }
}

inline Output pooled() {
  return {Type::kFeatures,
          {product(dim(0, 0), dim(0, 1)), dim(2, 1), attribute("output_height"),
           attribute("output_width")}};
}

inline std::vector<Equal> boxes_and_features() {
  return {{dim(0, 2), number(4)}, {dim(1, 0), dim(0, 0)}, {dim(2, 0), dim(0, 0)}};
}

}  // namespace deploykit
