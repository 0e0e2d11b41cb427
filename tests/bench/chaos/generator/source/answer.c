/* Reads the answers of HTTP/1.x from pieces of any size. Stricter than most clients, because it tests a server. */
#define _GNU_SOURCE
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "open_loop.h"

#define MAX_HEAD_BYTES 65536
#define MAX_LENGTH (UINT64_MAX / 32)

void start_answer(struct answer *answer, bool to_head)
{
    memset(answer, 0, offsetof(struct answer, line));
    answer->to_head = to_head;
    answer->retry_after = NO_RETRY_AFTER;
}

static bool parse_number(const char *text, unsigned base, uint64_t *number)
{
    const char *at = text;
    for (*number = 0; isxdigit((unsigned char)*at); at++) {
        unsigned digit = isdigit((unsigned char)*at) ? (unsigned)(*at - '0') : (unsigned)(tolower(*at) - 'a') + 10;
        if (digit >= base || *number > MAX_LENGTH)
            return false;
        *number = *number * base + digit;
    }
    return at > text && *at == '\0';
}

static enum progress read_status_line(struct answer *answer)
{
    const char *line = answer->line;
    if (strncmp(line, "HTTP/1.", 7) != 0 || (line[7] != '0' && line[7] != '1') || line[8] != ' ')
        return BAD;
    if (line[9] < '1' || line[9] > '9' || !isdigit((unsigned char)line[10]) || !isdigit((unsigned char)line[11]))
        return BAD;
    if (line[12] != ' ' && line[12] != '\0')
        return BAD;
    answer->status = (uint16_t)atoi(line + 9);
    answer->keep_alive = line[7] == '1';
    answer->state = HEADERS;
    return MORE;
}

static bool is_problem_json(const char *value)
{
    static const char type[] = "application/problem+json";
    size_t length = sizeof type - 1;
    return strncasecmp(value, type, length) == 0 && strchr("; \t", value[length]) != NULL;
}

static enum progress read_length(struct answer *answer, const char *value)
{
    uint64_t length;
    if (!parse_number(value, 10, &length) || (answer->has_length && length != answer->left))
        return BAD;
    answer->has_length = true;
    answer->left = length;
    return MORE;
}

static enum progress read_header(struct answer *answer)
{
    char *line = answer->line, *value = strchr(line, ':');
    if (value == NULL || strcspn(line, ": \t") != (size_t)(value - line) || value == line)
        return BAD;
    *value++ = '\0';
    value += strspn(value, " \t");
    for (size_t end = strlen(value); end > 0 && strchr(" \t", value[end - 1]) != NULL; end--)
        value[end - 1] = '\0';
    uint64_t seconds;
    if (strcasecmp(line, "content-length") == 0)
        return read_length(answer, value);
    if (strcasecmp(line, "transfer-encoding") == 0) {
        if (strcasecmp(value, "chunked") != 0 || answer->chunked)
            return BAD;
        answer->chunked = true;
    } else if (strcasecmp(line, "connection") == 0) {
        answer->keep_alive |= strcasestr(value, "keep-alive") != NULL;
        answer->keep_alive &= strcasestr(value, "close") == NULL;
    } else if (strcasecmp(line, "retry-after") == 0) {
        if (parse_number(value, 10, &seconds) && seconds <= INT32_MAX)
            answer->retry_after = (int32_t)seconds;
    } else if (strcasecmp(line, "content-type") == 0) {
        answer->problem_json = is_problem_json(value);
    }
    return MORE;
}

static enum progress end_head(struct answer *answer)
{
    if (answer->status == 101 || (answer->chunked && answer->has_length))
        return BAD;
    if (answer->status < 200)
        start_answer(answer, answer->to_head);
    else if (answer->to_head || answer->status == 204 || answer->status == 304)
        answer->state = COMPLETE;
    else if (answer->chunked)
        answer->state = CHUNK_SIZE;
    else if (answer->has_length)
        answer->state = answer->left > 0 ? BODY : COMPLETE;
    else {
        answer->state = UNTIL_CLOSE;
        answer->keep_alive = false;
    }
    return MORE;
}

static enum progress read_chunk_size(struct answer *answer)
{
    answer->line[strcspn(answer->line, "; \t")] = '\0';
    if (!parse_number(answer->line, 16, &answer->left))
        return BAD;
    answer->state = answer->left > 0 ? CHUNK_DATA : TRAILERS;
    return MORE;
}

static enum progress read_line(struct answer *answer)
{
    bool empty = answer->line_length == 0;
    if (strlen(answer->line) != answer->line_length) /* it holds a zero byte */
        return BAD;
    switch (answer->state) {
    case STATUS_LINE:
        return read_status_line(answer);
    case HEADERS:
        return empty ? end_head(answer) : read_header(answer);
    case CHUNK_SIZE:
        return read_chunk_size(answer);
    case CHUNK_END:
        answer->state = CHUNK_SIZE;
        return empty ? MORE : BAD;
    default:
        answer->state = empty ? COMPLETE : TRAILERS;
        return MORE;
    }
}

/* Adds bytes to the line, until and with its end. Reads the line if the end is among them. */
static enum progress feed_line(struct answer *answer, const char *data, size_t length, size_t *used)
{
    const char *newline = memchr(data, '\n', length);
    size_t taken = newline != NULL ? (size_t)(newline - data) : length;
    size_t room = MAX_LINE - 1 - answer->line_length, copied = taken < room ? taken : room;
    memcpy(answer->line + answer->line_length, data, copied);
    answer->line_length = (uint16_t)(answer->line_length + copied);
    if (taken > 0)
        answer->last = data[taken - 1];
    *used += taken + (newline != NULL);
    if (answer->state != CHUNK_SIZE && answer->state != CHUNK_END)
        answer->head_bytes += (uint32_t)taken;
    if (answer->head_bytes > MAX_HEAD_BYTES)
        return BAD;
    if (newline == NULL)
        return MORE;
    if (answer->last != '\r')
        return BAD;
    if (answer->line_length > 0 && answer->line[answer->line_length - 1] == '\r')
        answer->line_length--;
    answer->line[answer->line_length] = '\0';
    enum progress progress = read_line(answer);
    answer->line_length = 0;
    answer->last = '\0';
    return progress;
}

/* Adds `length` bytes, and counts in `used` those that belong to this answer. */
enum progress feed_answer(struct answer *answer, const char *data, size_t length, size_t *used)
{
    answer->started |= length > 0;
    for (*used = 0; *used < length && answer->state != COMPLETE;) {
        size_t left = length - *used;
        if (answer->state == UNTIL_CLOSE) {
            *used = length;
        } else if (answer->state == BODY || answer->state == CHUNK_DATA) {
            size_t taken = answer->left < left ? (size_t)answer->left : left;
            answer->left -= taken;
            *used += taken;
            if (answer->left == 0)
                answer->state = answer->state == BODY ? COMPLETE : CHUNK_END;
        } else if (feed_line(answer, data + *used, left, used) == BAD) {
            return BAD;
        }
    }
    return answer->state == COMPLETE ? DONE : MORE;
}
