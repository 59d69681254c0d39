/* speedtest1 as a loadable extension: loading it runs it, on the SQLite that loads it.
 *
 * Its arguments are words in the environment's BENCH_SPEEDTEST1. What it calls that an extension cannot
 * call concerns options that are not given here.
 */
#include "sqlite3ext.h"
SQLITE_EXTENSION_INIT1

#include <stdlib.h>
#include <string.h>

#define sqlite3_config(...) SQLITE_OK
#define sqlite3_initialize() SQLITE_OK
#define sqlite3_shutdown() SQLITE_OK
#define main speedtest1_main
#include "speedtest1.c"
#undef main

int sqlite3_extension_init(sqlite3 *db, char **error, const sqlite3_api_routines *api) {
  static char words[1024];
  char *argv[32];
  int argc = 0;
  const char *text = getenv("BENCH_SPEEDTEST1");
  SQLITE_EXTENSION_INIT2(api);
  (void)db;
  if (text == NULL || strlen(text) >= sizeof words) {
    *error = sqlite3_mprintf("BENCH_SPEEDTEST1 is not set, or too long");
    return SQLITE_ERROR;
  }
  strcpy(words, text);
  for (char *word = strtok(words, " "); word != NULL && argc < 31; word = strtok(NULL, " ")) {
    argv[argc++] = word;
  }
  argv[argc] = NULL;
  if (speedtest1_main(argc, argv) != 0) {
    *error = sqlite3_mprintf("speedtest1 failed");
    return SQLITE_ERROR;
  }
  fflush(stdout);
  return SQLITE_OK;
}
