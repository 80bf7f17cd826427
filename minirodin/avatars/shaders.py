"""GLSL of the people's renderer: depth from a light, light baked per vertex, shading, and the resolve to pixels."""

# A vertex of a strand moves sideways by `width`, square to the strand and to whoever looks.
_PLACE = """
vec3 place(vec3 p, vec3 t, float w, vec3 towards) {
    vec3 side = cross(t, towards);
    return w == 0.0 ? p : p + w * side / max(length(side), 1e-4);
}
"""

DEPTH_VERTEX = (
    """#version 330
in vec3 position, tangent; in float width;
uniform mat4 projection; uniform vec3 light;
"""
    + _PLACE
    + "void main() { gl_Position = projection * vec4(place(position, tangent, width, light), 1.0); }"
)

DEPTH_FRAGMENT = "#version 330\nvoid main() {}"

# Transform feedback: irradiance (RGB) and how much of the key light and of the sky a vertex sees.
BAKE_VERTEX = """#version 330
#define COUNT %(count)d
in vec3 position, normal, tangent; in float material;
uniform sampler2DShadow depths;
uniform mat4 projections[COUNT]; uniform vec3 directions[COUNT], radiance[COUNT]; uniform float key[COUNT];
uniform float tiles, texel;
out vec3 light; out vec2 seen;

void main() {
    bool hair = material > 1.5 && material < 2.5, skin = material < 0.5;
    // Light creeps around skin, red the farthest: the terminator turns warm as in tissue.
    vec3 wrap = skin ? vec3(0.38, 0.20, 0.15) : hair ? vec3(0.6) : vec3(0.12);
    vec3 sum = vec3(0.0), total = vec3(0.0); vec2 see = vec2(0.0), of = vec2(1e-6);
    for (int i = 0; i < COUNT; i++) {
        vec3 d = directions[i];
        float facing = dot(normal, d);
        vec3 offset = hair ? 0.016 * d : normal * 0.007 + d * 0.005 + vec3(0.0, 0.0, skin ? tangent.y : 0.0);
        vec4 q = projections[i] * vec4(position + offset, 1.0);
        vec2 cell = vec2(mod(float(i), tiles), floor(float(i) / tiles));
        vec2 uv = clamp(q.xy * 0.5 + 0.5, 2.0 * texel, 1.0 - 2.0 * texel);
        float visible = texture(depths, vec3((cell + uv) / tiles, q.z * 0.5 + 0.5));
        vec3 weight = max((facing + wrap) / ((1.0 + wrap) * (1.0 + wrap)), 0.0);
        if (hair) weight = vec3(sqrt(max(1.0 - dot(tangent, d) * dot(tangent, d), 0.0))) * (0.35 + 0.65 * weight);
        sum += radiance[i] * weight * visible;
        see += vec2(key[i] * visible, max(facing + 0.3, 0.0) * visible);
        of += vec2(key[i], max(facing + 0.3, 0.0));
    }
    light = sum; seen = see / of;
    gl_Position = vec4(0.0);
}
"""

VERTEX = (
    """#version 330
in vec3 position, normal, albedo, tangent, light; in float width; in vec2 seen;
uniform mat4 projection; uniform vec3 eye;
out vec3 P, N, A, T, L; out vec2 S;
"""
    + _PLACE
    + """
void main() {
    P = place(position, tangent, width, normalize(eye - position));
    N = normal; A = albedo; T = tangent; L = light; S = seen;
    gl_Position = projection * vec4(P, 1.0);
}
"""
)

# One program a material: SHADE gives the colour (and the alpha of lenses) from albedo, baked light and the view.
FRAGMENT = """#version 330
in vec3 P, N, A, T, L; in vec2 S;
uniform vec3 eye, key_direction;
out vec4 colour;

float lobe(vec3 n, vec3 h, float power) { return pow(max(dot(n, h), 0.0), power); }
vec3 sky(vec3 d) { return mix(vec3(0.20, 0.19, 0.18), vec3(0.78, 0.80, 0.84), smoothstep(-0.4, 0.9, d.y)); }
%(functions)s
void main() {
    vec3 v = normalize(eye - P), n = normalize(N), k = key_direction, h = normalize(k + v), c;
    if (%(two_sided)d == 1 && dot(n, v) < 0.0) n = -n;
    float fresnel = pow(1.0 - max(dot(n, v), 0.0), 4.0), alpha = 1.0;
%(shade)s
    // A soft shoulder: each channel for itself where nearly grey, so that white loses the light's warm tint; pure
    // colours by their brightest channel, so that yellow does not turn lime.
    float top = max(max(c.r, c.g), c.b), over = max(top - 0.72, 0.0);
    if (over > 0.0) {
        vec3 each = mix(c, 0.72 + 0.28 * tanh((c - 0.72) / 0.28), vec3(greaterThan(c, vec3(0.72))));
        float pure = 1.0 - min(min(c.r, c.g), c.b) / top;
        c = mix(c * (0.72 + 0.28 * tanh(over / 0.28)) / top, each, max(1.0 - 1.1 * pure, 0.15));
    }
    vec3 curve = 1.055 * pow(max(c, 1e-6), vec3(1.0 / 2.4)) - 0.055;
    colour = vec4(mix(12.92 * c, curve, vec3(greaterThan(c, vec3(0.0031308)))), alpha);
}
"""

# T: a coordinate whose integers are wrinkles, how far before it light is gathered, and the wrinkles' depth. Below a
# dark line light catches its edge.
_SKIN = """
    float turn = 6.2831853 * T.x;
    float groove = pow(0.5 + 0.5 * cos(turn), 6.0), ridge = pow(0.5 + 0.5 * cos(turn + 1.6), 4.0);
    c = A * L * (1.0 - T.z * (0.30 * groove - 0.09 * ridge));
    c += S.x * (0.03 * lobe(n, h, 12.0) + 0.045 * lobe(n, h, 40.0));
    c += 0.07 * fresnel * S.y * S.y * sky(reflect(-v, n));
"""

_IRIS = """
float noise(float x) { return fract(sin(x * 12.9898) * 43758.5453); }
float waves(float a, float k) {
    float i = floor(a * k), f = fract(a * k);
    return mix(noise(mod(i, k)), noise(mod(i + 1.0, k)), f * f * (3.0 - 2.0 * f));
}
vec3 iris(vec3 q, vec3 tint, vec3 towards_light) {
    float r = 1.1 * length(q.xy), turn = atan(q.y, q.x) / 6.2831853 + 0.5;
    vec3 white = vec3(0.86, 0.84, 0.82) * mix(vec3(1.0), vec3(0.95, 0.80, 0.77), smoothstep(0.65, 1.0, abs(q.x)));
    float fibre = 0.6 * waves(turn, 37.0) + 0.4 * waves(turn, 91.0);
    vec3 colour = tint * mix(0.85, 1.45, fibre * (1.0 - 0.5 * smoothstep(0.17, 0.46, r)));
    colour += tint * vec3(1.0, 0.75, 0.4) * 0.35 * smoothstep(0.30, 0.19, r);  // collarette
    colour *= 0.85 + 1.1 * max(-dot(q.xy, towards_light.xy), 0.0);  // light gathers opposite the key
    colour *= mix(1.0, 0.22, smoothstep(0.37, 0.48, r));  // limbal ring
    colour = mix(vec3(0.004), colour, smoothstep(0.155, 0.185, r));  // pupil
    return q.z > 0.0 ? mix(colour, white, smoothstep(0.455, 0.515, r)) : white;
}
"""

_EYE = """
    vec3 q = normalize(T), r = reflect(-v, n);
    float lid = mix(1.0, 0.7, smoothstep(0.15, 0.55, q.y));  // the upper lid's shadow
    float window = smoothstep(0.955, 0.975, dot(r, vec3(0.33, 0.36, 0.87)));
    window += 0.25 * smoothstep(0.95, 0.99, dot(r, vec3(-0.5, -0.1, 0.86)));
    c = iris(q, A, k) * L * lid + 0.03 * S.y * sky(r) + mix(0.6, 0.95, S.x) * window;
"""

# Kajiya-Kay: highlights where the strand is square to the half vector, one white, one shifted and of the hair's colour.
_HAIR = """
    vec3 t = normalize(T);
    float th = dot(t, h), tl = dot(normalize(t + 0.18 * n), h);
    float first = pow(max(1.0 - th * th, 0.0), 55.0), second = pow(max(1.0 - tl * tl, 0.0), 16.0);
    float lit = S.x * smoothstep(-0.2, 0.5, dot(n, k));
    c = A * L + lit * (0.09 * first + second * 0.45 * A) + 0.05 * S.y * S.y * fresnel;
"""

_WEAVE = """
// Collar line, sleeve seam and pattern of cloth: t = depth below the neckline, distance from the seam, style.
vec3 weave(vec3 a, vec3 t) {
    float style = floor(t.z + 0.001), line = exp(-pow((t.x - 0.043) / 0.004, 2.0));
    if (t.x > 0.06) line = max(line, exp(-pow(t.y / 0.005, 2.0)));
    if (style == 1.0 || style == 2.0) {
        float period = mix(0.07, 0.14, fract(t.z));
        float band = smoothstep(-0.15, 0.15, sin(P.y * 6.2831853 / period)) * step(0.05, t.x);
        a = mix(a, style == 1.0 ? vec3(0.72, 0.71, 0.67) : a * 0.22, band);
    } else if (style == 3.0) a *= t.x < 0.043 ? 0.35 : 1.0;
    else if (style == 4.0) {
        vec2 checks = smoothstep(0.2, 0.5, sin(vec2(P.y, t.y) * 80.0));
        a *= 1.0 - 0.22 * (checks.x + checks.y);
    }
    return a * (1.0 - 0.4 * line);
}
"""

_CLOTH = "    c = weave(A, T) * L + 0.03 * fresnel * S.y * sky(n);"

_GLOSSY = """
    vec3 mirror = S.y * 0.8 * sky(reflect(-v, n)) + S.x * 1.6 * lobe(n, h, 70.0);
    c = A * L * 0.75 + mix(vec3(0.06), A, 0.55) * mirror + 0.15 * fresnel * S.y;
"""

_LENS = """
    float shine = 0.25 * fresnel + S.x * 0.5 * lobe(n, h, 160.0);
    alpha = clamp(1.0 - dot(A, vec3(0.33)) + shine, 0.06, 0.95);
    c = (A * L * 0.5 * (alpha - shine) + shine * sky(reflect(-v, n)) * 1.2) / alpha;
"""

# In the order of minirodin.avatars.mesh: SKIN, EYE, HAIR, CLOTH, GLOSSY, LENS.
FRAGMENTS = [
    FRAGMENT % {"functions": functions, "shade": shade, "two_sided": two_sided}
    for functions, shade, two_sided in (
        ("", _SKIN, 0),
        (_IRIS, _EYE, 0),
        ("", _HAIR, 1),
        (_WEAVE, _CLOTH, 1),
        ("", _GLOSSY, 1),
        ("", _LENS, 1),
    )
]

SCREEN_VERTEX = """#version 330
void main() { gl_Position = vec4(vec2(gl_VertexID == 1 ? 3 : -1, gl_VertexID == 2 ? 3 : -1), 0.0, 1.0); }
"""

AVERAGE_FRAGMENT = """#version 330
uniform sampler2D samples; uniform int factor;
out vec4 colour;
void main() {
    ivec2 first = ivec2(gl_FragCoord.xy) * factor;
    colour = vec4(0.0);
    for (int j = 0; j < factor; j++)
        for (int i = 0; i < factor; i++) colour += texelFetch(samples, first + ivec2(i, j), 0);
    colour /= float(factor * factor);
}
"""

# Straight alpha; where nothing is covered the colour of the nearest silhouette, so that resizing leaves no dark fringe.
STRAIGHT_FRAGMENT = """#version 330
uniform sampler2D premultiplied; uniform int size;
out vec4 colour;
void main() {
    ivec2 at = ivec2(gl_FragCoord.xy);
    vec4 c = texelFetch(premultiplied, at, 0), near = vec4(0.0);
    if (c.a == 0.0) {
        for (int j = -2; j <= 2; j++) for (int i = -2; i <= 2; i++)
            near += texelFetch(premultiplied, clamp(at + ivec2(i, j), ivec2(0), ivec2(size - 1)), 0);
    } else near = c;
    colour = vec4(near.a > 0.0 ? near.rgb / near.a : vec3(0.0), c.a);
}
"""
