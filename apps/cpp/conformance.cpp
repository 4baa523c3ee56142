// kdc-conformance BUNDLE RESULTS.json [APP]: what this machine measures, for `kdc-edge conformance BUNDLE --results`.

#include "kdc_edge.hpp"
#include "kdc_edge/conformance.hpp"

#include <iostream>

using kdc_edge::Problem;

int main(int count, char** words) try {
  if (count < 3 || count > 4) {
    throw Problem(Problem::usage, "Say which bundle and where to write: kdc-conformance BUNDLE RESULTS.json [APP]");
  }
  const kdc_edge::Bundle bundle(words[1]);
  const auto pipeline = kdc_edge::open(bundle);
  const std::string app = count == 4 ? words[3] : "kdc-edge for C++, onnxruntime " + Ort::GetVersionString();
  std::ofstream file(words[2], std::ios::binary);
  file << kdc_edge::Conformance(bundle, pipeline).results(app).dump(2) << '\n';
  if (!file.flush()) throw Problem(Problem::usage, std::string(words[2]) + " cannot be written. Name another file.");
  return 0;
} catch (const std::exception& error) {
  return kdc_edge::explain(error, std::cerr);
}
