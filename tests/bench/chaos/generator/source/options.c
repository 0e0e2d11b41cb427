/* Reads the command line. A fault is one line on standard error, and exit code 2. */
#define _GNU_SOURCE
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "open_loop.h"

#define MAX_RATE 1e6
#define MAX_SECONDS 3600.0

static const char usage[] =
    "open_loop --port PORT --phases RATE:SECONDS[,RATE:SECONDS...] [options]\n"
    "\n"
    "Sends requests when they are due, and never waits for answers. Prints a report as JSON.\n"
    "\n"
    "  --host ADDRESS      of the server (127.0.0.1)\n"
    "  --method METHOD     of the requests (POST)\n"
    "  --path PATH         of the requests (/)\n"
    "  --header LINE       of every request, such as 'Name: value'; may be repeated\n"
    "  --bodies FILE       a body per line, sent in turn; without it, requests have no body\n"
    "  --gaps KIND         between arrivals: constant or poisson (constant)\n"
    "  --seed NUMBER       of the gaps (1)\n"
    "  --give-up-ms MS     after which a client closes its connection (1000)\n"
    "  --connections N     open at the same time, at most (10000)\n"
    "  --fresh             open a connection for each request\n"
    "  --window-ms MS      of the time line (100)\n";

_Noreturn void fail(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    fputs("open_loop: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    exit(2);
}

void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count > 0 ? count : 1, size);
    if (memory == NULL)
        fail("no memory for %zu times %zu bytes", count, size);
    return memory;
}

static uint64_t integer(const char *name, const char *text, uint64_t least, uint64_t most)
{
    char *end;
    unsigned long long number = strtoull(text, &end, 10);
    if (strspn(text, "0123456789") != strlen(text) || end == text || number < least || number > most)
        fail("--%s is an integer from %llu to %llu, not '%s'", name, (unsigned long long)least,
             (unsigned long long)most, text);
    return number;
}

static void parse_phases(struct options *options, const char *text)
{
    for (const char *at = text;;) {
        struct phase phase = {0};
        char *end;
        phase.rate = strtod(at, &end);
        bool parsed = end > at && *end == ':';
        if (parsed) {
            at = end + 1;
            phase.seconds = strtod(at, &end);
            parsed = end > at && (*end == ',' || *end == '\0');
        }
        if (!parsed || !(phase.rate >= 0 && phase.rate <= MAX_RATE) ||
            !(phase.seconds > 0 && phase.seconds <= MAX_SECONDS))
            fail("--phases are RATE:SECONDS with commas between, at most %.0f per second for at most %.0f s, not '%s'",
                 MAX_RATE, MAX_SECONDS, text);
        if (options->phase_count == MAX_PHASES)
            fail("there are at most %d phases", MAX_PHASES);
        options->phases[options->phase_count++] = phase;
        if (*end == '\0')
            return;
        at = end + 1;
    }
}

static const char *token(const char *name, const char *text)
{
    if (*text == '\0' || strpbrk(text, " \t\r\n") != NULL)
        fail("--%s has no white space and is not empty", name);
    return text;
}

static void add_header(struct options *options, const char *line)
{
    const char *colon = strchr(line, ':');
    if (colon == NULL || colon == line || strpbrk(line, "\r\n") != NULL)
        fail("--header is 'Name: value', not '%s'", line);
    if (options->header_count == MAX_HEADERS)
        fail("there are at most %d headers", MAX_HEADERS);
    options->headers[options->header_count++] = line;
}

static bool is_poisson(const char *kind)
{
    if (strcmp(kind, "constant") != 0 && strcmp(kind, "poisson") != 0)
        fail("--gaps is constant or poisson, not '%s'", kind);
    return *kind == 'p';
}

static void set_option(struct options *options, char letter, const char *name, const char *value)
{
    switch (letter) {
    case 'H': options->host = value; break;
    case 'P':
        integer(name, value, 1, 65535);
        options->port = value;
        break;
    case 'r': parse_phases(options, value); break;
    case 'm': options->method = token(name, value); break;
    case 'u': options->path = token(name, value); break;
    case 'h': add_header(options, value); break;
    case 'b': options->bodies = value; break;
    case 'g': options->poisson = is_poisson(value); break;
    case 's': options->seed = integer(name, value, 0, UINT64_MAX - 1); break;
    case 't': options->give_up_ns = (int64_t)integer(name, value, 1, 3600000) * MS_NS; break;
    case 'w': options->window_ns = (int64_t)integer(name, value, 1, 3600000) * MS_NS; break;
    case 'n': options->max_connections = integer(name, value, 1, MAX_CONNECTIONS); break;
    case 'f': options->fresh = true; break;
    case '?': fail("an option is unknown or has no value; --help lists them");
    default: fputs(usage, stdout); exit(0);
    }
}

void parse_options(struct options *options, int count, char **words)
{
    static const struct option names[] = {
        {"host", required_argument, NULL, 'H'},        {"port", required_argument, NULL, 'P'},
        {"phases", required_argument, NULL, 'r'},      {"method", required_argument, NULL, 'm'},
        {"path", required_argument, NULL, 'u'},        {"header", required_argument, NULL, 'h'},
        {"bodies", required_argument, NULL, 'b'},      {"gaps", required_argument, NULL, 'g'},
        {"seed", required_argument, NULL, 's'},        {"give-up-ms", required_argument, NULL, 't'},
        {"window-ms", required_argument, NULL, 'w'},   {"connections", required_argument, NULL, 'n'},
        {"fresh", no_argument, NULL, 'f'},             {"help", no_argument, NULL, 'x'},
        {NULL, 0, NULL, 0},
    };
    *options = (struct options){
        .host = "127.0.0.1",
        .method = "POST",
        .path = "/",
        .seed = 1,
        .give_up_ns = SECOND_NS,
        .window_ns = 100 * MS_NS,
        .max_connections = 10000,
    };
    opterr = 0;
    for (int letter, index = 0; (letter = getopt_long(count, words, "", names, &index)) != -1;)
        set_option(options, (char)letter, letter == '?' ? "" : names[index].name, optarg);
    if (optind < count)
        fail("'%s' is no option; --help lists them", words[optind]);
    if (options->port == NULL || options->phase_count == 0)
        fail("--port and --phases are needed; --help lists all options");
}
