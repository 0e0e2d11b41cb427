/* Counts the arrivals by their fates, and prints the report as one line of JSON. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "open_loop.h"

#define STATUSES 1000
#define ERRNOS 256
#define NS_PER_S 1e9

struct status {
    size_t count, problem_json, retry_after_count;
    int32_t retry_after_min, retry_after_max;
};

struct counts {
    size_t fates[MALFORMED + 1], stages[WAITING + 1], errnos[ERRNOS], good, stale;
    struct status statuses[STATUSES];
};

static bool is_good(const struct run *run, const struct arrival *arrival)
{
    return arrival->fate == ANSWERED && arrival->code == 200 &&
           arrival->latency_us * US_NS <= run->options->give_up_ns;
}

static bool is_refused(const struct arrival *arrival)
{
    return arrival->fate == ANSWERED && (arrival->code == 429 || arrival->code == 503);
}

static void count_answer(struct status *status, const struct arrival *arrival)
{
    int32_t seconds = arrival->retry_after;
    status->count++;
    status->problem_json += arrival->problem_json;
    if (seconds == NO_RETRY_AFTER)
        return;
    if (status->retry_after_count == 0 || seconds < status->retry_after_min)
        status->retry_after_min = seconds;
    if (seconds > status->retry_after_max)
        status->retry_after_max = seconds;
    status->retry_after_count++;
}

static void count_arrivals(const struct run *run, size_t first, size_t end, struct counts *counts)
{
    memset(counts, 0, sizeof *counts);
    for (size_t index = first; index < end; index++) {
        const struct arrival *arrival = &run->arrivals[index];
        counts->fates[arrival->fate]++;
        counts->good += is_good(run, arrival);
        if (arrival->fate == ANSWERED)
            count_answer(&counts->statuses[arrival->code % STATUSES], arrival);
        else if (arrival->fate == GAVE_UP)
            counts->stages[arrival->code]++;
        else if (arrival->fate == FAILED)
            counts->errnos[arrival->code % ERRNOS]++;
        else if (arrival->fate == RESET || arrival->fate == CLOSED)
            counts->stale += arrival->code;
    }
}

static int compare(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

/* The smallest time that at least this share of all does not exceed. */
static double percentile_ms(const uint32_t *sorted_us, size_t count, double share)
{
    size_t rank = (size_t)ceil(share * (double)count);
    return sorted_us[rank > 0 ? rank - 1 : 0] / 1e3;
}

static void print_times(const char *name, uint32_t *times_us, size_t count)
{
    printf("\"%s\":", name);
    if (count == 0) {
        fputs("null", stdout);
        return;
    }
    qsort(times_us, count, sizeof *times_us, compare);
    printf("{\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"p99_9\":%.3f,\"max\":%.3f}",
           percentile_ms(times_us, count, 0.5), percentile_ms(times_us, count, 0.9),
           percentile_ms(times_us, count, 0.99), percentile_ms(times_us, count, 0.999), times_us[count - 1] / 1e3);
}

static void print_latencies(const struct run *run, size_t first, size_t end)
{
    uint32_t *times_us = allocate(end - first, sizeof *times_us);
    size_t ok = 0, all = 0;
    for (size_t index = first; index < end; index++)
        if (run->arrivals[index].fate == ANSWERED && run->arrivals[index].code == 200)
            times_us[ok++] = run->arrivals[index].latency_us;
    fputs(",\"latency_ms\":{", stdout);
    print_times("ok", times_us, ok);
    for (size_t index = first; index < end; index++)
        if (run->arrivals[index].fate == ANSWERED)
            times_us[all++] = run->arrivals[index].latency_us;
    fputc(',', stdout);
    print_times("all", times_us, all);
    fputc('}', stdout);
    free(times_us);
}

static void print_statuses(const struct status *statuses)
{
    const char *comma = "";
    fputs(",\"statuses\":{", stdout);
    for (size_t code = 0; code < STATUSES; code++) {
        const struct status *status = &statuses[code];
        if (status->count == 0)
            continue;
        printf("%s\"%zu\":{\"count\":%zu,\"problem_json\":%zu,\"retry_after\":", comma, code, status->count,
               status->problem_json);
        if (status->retry_after_count > 0)
            printf("{\"count\":%zu,\"min\":%d,\"max\":%d}}", status->retry_after_count, status->retry_after_min,
                   status->retry_after_max);
        else
            fputs("null}", stdout);
        comma = ",";
    }
    fputc('}', stdout);
}

static void print_errors(const size_t *errnos)
{
    const char *comma = "";
    fputs(",\"errors\":{", stdout);
    for (size_t code = 0; code < ERRNOS; code++)
        if (errnos[code] > 0) {
            printf("%s\"%zu\":%zu", comma, code, errnos[code]);
            comma = ",";
        }
    fputc('}', stdout);
}

static void print_summary(const struct run *run, size_t first, size_t end, double start_s, double seconds)
{
    struct counts counts;
    count_arrivals(run, first, end, &counts);
    printf("\"start_s\":%.6f,\"seconds\":%.6f,\"arrivals\":%zu,\"good\":%zu,\"goodput_per_s\":%.3f", start_s, seconds,
           end - first, counts.good, (double)counts.good / seconds);
    print_statuses(counts.statuses);
    printf(",\"gave_up\":{\"unsent\":%zu,\"connecting\":%zu,\"waiting\":%zu}", counts.stages[UNSENT],
           counts.stages[CONNECTING], counts.stages[WAITING]);
    printf(",\"not_sent\":%zu,\"resets\":%zu,\"closed\":%zu,\"stale\":%zu,\"malformed\":%zu", counts.fates[NOT_SENT],
           counts.fates[RESET], counts.fates[CLOSED], counts.stale, counts.fates[MALFORMED]);
    print_errors(counts.errnos);
    print_latencies(run, first, end);
}

static void print_row(const char *name, const size_t *values, size_t count)
{
    printf("\"%s\":[", name);
    for (size_t index = 0; index < count; index++)
        printf("%s%zu", index > 0 ? "," : "", values[index]);
    fputc(']', stdout);
}

/* An arrival belongs to the window in which it was due, whenever it ended. */
static void print_windows(const struct run *run, double seconds)
{
    int64_t window_ns = run->options->window_ns;
    size_t count = (size_t)ceil(seconds * NS_PER_S / (double)window_ns - 1e-6);
    size_t *arrivals = allocate(4 * (count + 1), sizeof *arrivals);
    size_t *good = arrivals + count + 1, *refused = good + count + 1, *other = refused + count + 1;
    for (size_t index = 0; index < run->arrival_count; index++) {
        const struct arrival *arrival = &run->arrivals[index];
        size_t window = (size_t)(arrival->due_ns / window_ns);
        window = window < count ? window : count - 1;
        arrivals[window]++;
        *(is_good(run, arrival) ? &good[window] : is_refused(arrival) ? &refused[window] : &other[window]) += 1;
    }
    printf(",\"windows\":{\"seconds\":%.6f,", (double)window_ns / NS_PER_S);
    print_row("arrivals", arrivals, count);
    fputc(',', stdout);
    print_row("good", good, count);
    fputc(',', stdout);
    print_row("refused", refused, count);
    fputc(',', stdout);
    print_row("other", other, count);
    fputc('}', stdout);
    free(arrivals);
}

static void print_lag(const struct run *run)
{
    uint32_t *times_us = allocate(run->arrival_count, sizeof *times_us);
    for (size_t index = 0; index < run->arrival_count; index++)
        times_us[index] = run->arrivals[index].lag_us;
    fputc(',', stdout);
    print_times("lag_ms", times_us, run->arrival_count);
    free(times_us);
}

void print_report(const struct run *run)
{
    const struct options *options = run->options;
    const struct phase *last = &options->phases[options->phase_count - 1];
    double seconds = (double)last->start_ns / NS_PER_S + last->seconds;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"started_s\":%.6f,\"give_up_s\":%.6f", (double)run->started_ns / NS_PER_S,
           (double)options->give_up_ns / NS_PER_S);
    printf(",\"cpu_s\":%.6f", (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                                  (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    print_lag(run);
    printf(",\"connections\":{\"opened\":%zu,\"reused\":%zu,\"peak\":%zu,\"closed_idle\":%zu,\"unsolicited\":%zu}",
           run->opened, run->reused, run->peak, run->closed_idle, run->unsolicited);
    fputs(",\"total\":{", stdout);
    print_summary(run, 0, run->arrival_count, 0, seconds);
    fputs("},\"phases\":[", stdout);
    for (size_t index = 0; index < options->phase_count; index++) {
        const struct phase *phase = &options->phases[index];
        printf("%s{\"rate\":%.6f,", index > 0 ? "," : "", phase->rate);
        print_summary(run, phase->first, phase->end, (double)phase->start_ns / NS_PER_S, phase->seconds);
        fputc('}', stdout);
    }
    fputc(']', stdout);
    print_windows(run, seconds);
    puts("}");
}
