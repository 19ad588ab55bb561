// The whole experiment: every backend, the study of the trace, the policies, the cluster's rows;
// one JSON file and one page. bench/paper.sh builds and calls it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace kvcfs::bench {

struct PaperOptions {
  std::string program;         // this one
  std::string trace;           // file
  std::string trace_name;      // as it is shown
  uint64_t limit = 0;          // requests; 0: all
  size_t requests_max = 4000;  // a run; of more, every nth is asked
  double open_seconds = 5;
  std::vector<size_t> clients = {1, 4, 16};
  std::string json, report;       // files; empty: none
  std::vector<std::string> only;  // BACKEND or BACKEND/TRANSPORT; empty: all
  std::string command;            // as it was typed, for the page
};

// Prints tables. Fails: kInvalid no trace; kIo a file cannot be written.
Status RunPaper(const PaperOptions& options);

}  // namespace kvcfs::bench
