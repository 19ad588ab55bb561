# Compiles through ccache where it is installed. The presets name this file in CMAKE_PROJECT_TOP_LEVEL_INCLUDES, because
# a preset cannot ask whether a program exists.
find_program(KVC_CCACHE ccache)
if(KVC_CCACHE)
  foreach(language IN ITEMS C CXX)
    if(NOT DEFINED CMAKE_${language}_COMPILER_LAUNCHER)
      set(CMAKE_${language}_COMPILER_LAUNCHER "${KVC_CCACHE}")
    endif()
  endforeach()
endif()
