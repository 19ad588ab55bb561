// The page that a replay leaves behind: one HTML file that needs nothing else.
#pragma once

#include <string>
#include <string_view>

#include "tools/replay.h"

namespace kvcfs::tools {

struct ReportHead {
  std::string trace;    // file name
  std::string where;    // MNT/NS
  std::string version;  // of kvcfs
  std::string mode;     // passthrough: on, or off and why
  std::string machine;  // kernel, CPUs, memory
  std::string when;     // date
  std::string command;
};

std::string RenderReport(const ReportHead& head, const ReplayResult& result);

// The style sheet of our pages; plots want it.
std::string_view ReportStyle();

// "Linux 6.18, 2 CPUs, 23.4 GiB".
std::string DescribeMachine();

}  // namespace kvcfs::tools
