# find_package(secateur) with secateur_DIR as `secateur cmake-dir` prints it.
#
#   secateur_add_model(NAME MODEL FILE [TARGET NAME] [RECIPE FILE|NAME]
#     [THREADS none|caller|own] [LABELS FILE] [WEIGHTS_APART] [OPTIONS ...])
#
# makes NAME a library to link with, whose headers are NAME.h and NAME.hpp. It is compiled as it is,
# by `secateur compile`, which needs a TARGET; with a RECIPE, a file or the name of one that comes
# with secateur, `secateur optimize` does what that says first. It is made anew when the model,
# weights in files beside it, the recipe, data, the labels or the options change. OPTIONS go to the
# command.

cmake_minimum_required(VERSION 3.20)

if(NOT SECATEUR_EXECUTABLE)
  # Of the same installation: in .../lib/pythonX.Y/site-packages/secateur/cmake, or found by name.
  get_filename_component(_secateur_prefix "${CMAKE_CURRENT_LIST_DIR}/../../../../.." ABSOLUTE)
  find_program(
    SECATEUR_EXECUTABLE secateur
    HINTS "${_secateur_prefix}/bin"
    DOC "The secateur command"
    NO_CMAKE_FIND_ROOT_PATH
  )
endif()
if(NOT SECATEUR_EXECUTABLE)
  set(secateur_FOUND FALSE)
  set(secateur_NOT_FOUND_MESSAGE "the command secateur isn't there: set SECATEUR_EXECUTABLE")
  return()
endif()

function(secateur_add_model name)
  cmake_parse_arguments(
    PARSE_ARGV 1 arg "WEIGHTS_APART" "MODEL;TARGET;RECIPE;THREADS;LABELS" "OPTIONS"
  )
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "secateur_add_model(${name}): unknown ${arg_UNPARSED_ARGUMENTS}")
  endif()
  if(NOT arg_MODEL)
    message(FATAL_ERROR "secateur_add_model(${name}): MODEL is missing")
  endif()
  if(NOT arg_TARGET AND NOT arg_RECIPE)
    message(FATAL_ERROR "secateur_add_model(${name}): TARGET is missing")
  endif()
  get_filename_component(model "${arg_MODEL}" ABSOLUTE)
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/${name}")
  set(library "${folder}/lib${name}.a")
  set(depends "${model}")
  set(more "")
  if(arg_RECIPE)
    set(command "${SECATEUR_EXECUTABLE}" optimize "${model}" --recipe)
    get_filename_component(recipe "${arg_RECIPE}" ABSOLUTE)
    if(EXISTS "${recipe}" OR recipe MATCHES "\\.toml$")
      list(APPEND command "${recipe}")
      list(APPEND depends "${recipe}")
    else()
      list(APPEND command "${arg_RECIPE}")
    endif()
    foreach(file model.onnx report.json report.md)
      list(APPEND more "${folder}/${file}")
    endforeach()
  else()
    set(command "${SECATEUR_EXECUTABLE}" compile "${model}")
  endif()
  list(
    APPEND command -o "${folder}" --format library --name "${name}" --depfile "${folder}.d"
  )
  if(arg_TARGET)
    list(APPEND command --target "${arg_TARGET}")
  endif()
  if(arg_THREADS)
    list(APPEND command --library-threads "${arg_THREADS}")
  endif()
  if(arg_LABELS)
    get_filename_component(labels "${arg_LABELS}" ABSOLUTE)
    list(APPEND command --labels "${labels}")
    list(APPEND depends "${labels}")
  endif()
  if(arg_WEIGHTS_APART)
    list(APPEND command --weights-apart)
  endif()
  list(APPEND command ${arg_OPTIONS})
  set(made "${library}" "${folder}/${name}.h")
  if(arg_WEIGHTS_APART)
    list(APPEND made "${folder}/${name}.weights")
  endif()
  add_custom_command(
    OUTPUT ${made}
    BYPRODUCTS "${folder}/${name}.hpp" "${folder}/${name}.py" "${folder}/lib${name}.so"
               "${folder}/${name}.json" "${folder}/${name}.pc" ${more}
    COMMAND ${command}
    DEPENDS ${depends}
    DEPFILE "${folder}.d"
    COMMENT "Compiling ${name} ${arg_TARGET} ${arg_RECIPE}"
    VERBATIM
  )
  add_custom_target(${name}_files DEPENDS ${made})
  file(MAKE_DIRECTORY "${folder}")
  add_library(${name} STATIC IMPORTED GLOBAL)
  set_target_properties(
    ${name} PROPERTIES IMPORTED_LOCATION "${library}" INTERFACE_INCLUDE_DIRECTORIES "${folder}"
  )
  add_dependencies(${name} ${name}_files)
  target_link_libraries(${name} INTERFACE m)
  if(arg_THREADS STREQUAL "own" OR arg_RECIPE) # which may ask for threads of the library's own
    find_package(Threads REQUIRED)
    target_link_libraries(${name} INTERFACE Threads::Threads)
  endif()
endfunction()
