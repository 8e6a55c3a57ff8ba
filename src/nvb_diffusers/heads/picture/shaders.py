"""GLSL 330 programs. Positions are in dm with the world's origin at 0; colors are linear until `display`.

A pixel is rasterized at a finer size (`SURFACE`, `STRAND`) and then averaged over the backdrop (`RESOLVE`).
"""

DISPLAY = """
// a filmic curve, then sRGB's by square roots, which are cheaper than powers
vec3 display(vec3 c) {
    c = max(c, 0.0);
    c = clamp(c * (1.0 + c * 0.12) / (1.0 + c * 0.38) * 1.12, 0.0, 1.0);
    vec3 a = sqrt(c), b = sqrt(a), d = sqrt(b);
    return clamp(0.662002687 * a + 0.684122060 * b - 0.323583601 * d - 0.0225411470 * c, 0.0, 1.0);
}
"""

SHADOW_VERTEX = """#version 330
uniform mat4 projection;
in vec3 position;
void main() { gl_Position = projection * vec4(position, 1.0); }
"""
SHADOW_FRAGMENT = """#version 330
void main() {}
"""

# `inflate` lifts clothes off the skin. light: rgb is the irradiance, a the share of the key lights that arrive.
# look: shine, cloth value, wrinkles.
SURFACE_VERTEX = """#version 330
uniform mat4 projection;
uniform vec3 eye;
uniform float inflate;
in vec3 position, normal, rest, albedo, look;
in vec4 light;
out vec3 n, toward, place, base, more;
out vec4 lit;
void main() {
    vec3 p = position + normal * inflate;
    n = normal;
    toward = eye - p;
    place = rest;
    base = albedo;
    more = look;
    lit = light;
    gl_Position = projection * vec4(p, 1.0);
}
"""

REFLECTION = """
uniform vec3 keys[2], key_radiance[2], above, below;
float fifth(float x) { float y = x * x; return y * y * x; }
// highlights of the two strongest lights: Blinn's lobe of an exponent, with Schlick's Fresnel term
vec3 highlights(vec3 normal, vec3 view, float exponent, float facing) {
    vec3 sum = vec3(0.0);
    float nv = max(dot(normal, view), 0.02);
    for (int i = 0; i < 2; i++) {
        vec3 half_way = normalize(view + keys[i]);
        float fresnel = facing + (1.0 - facing) * fifth(1.0 - max(dot(view, half_way), 0.0));
        float lobe = exp2(exponent * 1.4427 * (max(dot(normal, half_way), 0.0) - 1.0));
        sum += key_radiance[i] * (max(dot(normal, keys[i]), 0.0) * fresnel * (exponent + 2.0) * lobe);
    }
    return sum * (0.35 / 8.0) / (0.25 + nv);
}
vec3 surroundings(float height) { return mix(below, above, smoothstep(-0.7, 0.8, height)); }
"""

# Skin shines broadly enough to compute it at the vertices; a pixel adds what is finer than the mesh, of FRECKLES, SPOTS
# (and moles) and WRINKLES only what is defined: a branch would cost as much as drawing them in software.
SKIN_VERTEX = (
    """#version 330
uniform mat4 projection;
uniform vec3 eye;
uniform float gloss;
in vec3 position, normal, rest, albedo, look;
in vec4 light;
out vec3 diffuse, shine, place;
out vec2 fine;  // how bare the skin is, wrinkles
"""
    + REFLECTION
    + """
void main() {
    vec3 view = normalize(eye - position);
    diffuse = albedo * light.rgb;
    shine = highlights(normal, view, mix(20.0, 55.0, gloss), 0.032) * light.a * (0.35 + 0.65 * gloss);
    float edge = 0.028 + 0.22 * fifth(1.0 - max(dot(normal, view), 0.0));
    float open = clamp(dot(light.rgb, vec3(0.3)), 0.0, 1.0);
    shine += surroundings(reflect(-view, normal).y) * (edge * open * (0.5 + 0.5 * gloss));
    shine *= look.x;
    place = rest;
    fine = vec2(min(look.x, 1.0), look.z);
    gl_Position = projection * vec4(position, 1.0);
}
"""
)
SKIN_FRAGMENT = (
    """#version 330
uniform sampler3D noise;
uniform float freckles, spots, moles, seed;
in vec3 diffuse, shine, place;
in vec2 fine;
layout(location = 0) out vec4 result;
"""
    + DISPLAY
    + """
void main() {
    vec4 pores = textureLod(noise, place * 2.0 + seed, 0.0) - 0.5;  // cells of 1.5 mm
    vec3 color = diffuse * (1.0 + fine.x * 0.16 * pores.x);
#ifdef FRECKLES
    float fleck = textureLod(noise, place * 0.94 + 1.7 * seed, 0.0).x;
    float across_face = step(1.1, place.z) * smoothstep(7.85, 7.3, place.y);
    float share = smoothstep(0.68 - 0.06 * freckles, 0.82, fleck) * freckles * across_face * fine.x;
    color *= mix(vec3(1.0), vec3(0.74, 0.60, 0.50), clamp(share, 0.0, 1.0));
#endif
#ifdef SPOTS
    vec4 blotch = textureLod(noise, place * 0.22 + 1.3 * seed, 0.0);
    color *= mix(vec3(1.0), vec3(0.80, 0.71, 0.64), smoothstep(0.76, 0.84, blotch.x) * spots * fine.x);
    color *= mix(vec3(1.0), vec3(0.40, 0.28, 0.25), smoothstep(0.94, 0.96, blotch.y) * moles * fine.x);
#endif
#ifdef WRINKLES
    float crease = textureLod(noise, place * vec3(0.03, 0.5, 0.03) + seed, 0.0).x;
    color *= 1.0 - fine.y * 0.26 * smoothstep(0.52, 0.70, crease);
#endif
    result = vec4(display(color + shine * (1.0 + 1.1 * fine.x * pores.y)), 1.0);
}
"""
)

SURFACE_COMMON = (
    """#version 330
uniform sampler3D noise;
in vec3 n, toward, place, base, more;
in vec4 lit;
layout(location = 0) out vec4 result;
"""
    + DISPLAY
    + REFLECTION
    + "\n"
)

EYE_FRAGMENT = (
    SURFACE_COMMON
    + """
uniform vec3 eye_left, eye_right, gaze, iris;
uniform float seed;
void main() {
    vec3 view = normalize(toward);
    vec3 center = place.x > 0.0 ? eye_left : eye_right;
    vec3 out_ward = normalize(base - center);  // of an eye, the base is its position
    float angle = acos(clamp(dot(out_ward, gaze), -1.0, 1.0));
    vec3 tx = normalize(cross(vec3(0, 1, 0), gaze)), ty = cross(gaze, tx);
    float x = dot(out_ward, tx), y = dot(out_ward, ty);
    vec2 spoke = vec2(x, y) * inversesqrt(x * x + y * y + 1e-6);
    vec4 grain = textureLod(noise, vec3(spoke * 0.4, angle * 0.15 + seed), 0.0);
    const float rim = 0.50, pupil = 0.19;
    vec3 white = mix(vec3(0.86, 0.83, 0.80), vec3(0.62, 0.43, 0.38), smoothstep(0.70, 1.30, angle));
    white *= 0.92 + 0.16 * grain.z;
    vec3 c = iris * (0.8 + 1.6 * grain.x);
    c = mix(c, c * vec3(1.5, 1.25, 0.8), smoothstep(0.36, 0.20, angle) * 0.5);
    c *= mix(1.0, 0.28, smoothstep(0.40, 0.50, angle));
    c = mix(c, vec3(0.008), smoothstep(pupil + 0.03, pupil - 0.02, angle));
    c = mix(c, white, smoothstep(rim - 0.02, rim + 0.045, angle));
    float lid = smoothstep(-0.15, 0.45, out_ward.y);
    c *= lit.rgb * (1.1 - 0.55 * lid);
    vec3 normal = normalize(mix(out_ward, gaze, 0.25 * smoothstep(0.7, 0.3, angle)));
    c += min(highlights(normal, view, 400.0, 0.06) * max(lit.a, 0.5), vec3(1.2));
    c += surroundings(reflect(-view, normal).y) * (0.05 * (1.0 - lid));
    result = vec4(display(c), 1.0);
}
"""
)

# Teeth get darker towards the corners of the mouth, and have gaps.
TEETH_FRAGMENT = (
    SURFACE_COMMON
    + """
void main() {
    vec3 view = normalize(toward), normal = normalize(n);
    float front = smoothstep(0.98, 1.40, place.z);
    float gap = abs(fract(place.x * 11.5 + 0.5) - 0.5);
    vec3 c = base * mix(0.72, 1.0, smoothstep(0.0, 0.09, gap)) * lit.rgb * (0.06 + 0.58 * front);
    c += highlights(normal, view, 90.0, 0.04) * (0.35 * lit.a * front);
    result = vec4(display(c), 1.0);
}
"""
)

TONGUE_FRAGMENT = (
    SURFACE_COMMON
    + """
void main() { result = vec4(display(vec3(0.42, 0.13, 0.12) * lit.rgb * 0.35), 1.0); }
"""
)

CLOTH_FRAGMENT = (
    SURFACE_COMMON
    + """
uniform vec3 cloth, second;
uniform int pattern;
uniform float seed;
void main() {
    float down = more.y;
    if (down < 0.0) discard;
    vec3 view = normalize(toward), normal = normalize(n);
    vec4 weave = textureLod(noise, place * 1.9 + seed, 0.0), fold = textureLod(noise, place * 0.12 + seed, 0.0);
    float stripe_x = step(0.0, sin(place.x * 26.0)), stripe_y = step(0.0, sin(place.y * 30.0));
    float share = pattern == 1 ? stripe_y : pattern == 2 ? stripe_x : pattern == 3 ? step(0.64, fold.w) :
        pattern == 4 ? 0.5 * (stripe_x + stripe_y) : 0.0;
    vec3 c = mix(cloth, second, share);
    float seam = smoothstep(0.16, 0.12, down) * smoothstep(0.0, 0.02, down);
    c *= (1.0 - 0.2 * seam) * (0.80 + 0.28 * weave.x + 0.5 * (fold.x - 0.5));
    normal = normalize(normal + 0.5 * (fold.xyz - 0.5));
    float edge = fifth(1.0 - max(dot(normal, view), 0.0));
    c = c * lit.rgb + c * surroundings(normal.y) * (edge * 0.25);
    result = vec4(display(c), 1.0);
}
"""
)

# What is worn: `alpha` below 1 is a lens, seen by what it mirrors.
WORN_FRAGMENT = (
    SURFACE_COMMON
    + """
uniform vec3 color;
uniform float gloss, alpha;
void main() {
    vec3 view = normalize(toward), normal = normalize(n);
    if (dot(normal, view) < 0.0) normal = -normal;
    vec4 weave = textureLod(noise, place * 1.9, 0.0);
    vec3 c = color * lit.rgb * mix(0.8 + 0.4 * weave.x, 1.0, gloss);
    float edge = 0.04 + 0.5 * fifth(1.0 - max(dot(normal, view), 0.0));
    vec3 mirrored = highlights(normal, view, 20.0 + 300.0 * gloss, 0.06) * (lit.a * gloss);
    mirrored += surroundings(reflect(-view, normal).y) * (edge * gloss);
    float opacity = clamp(alpha + dot(mirrored, vec3(0.33)), 0.0, 1.0);
    result = vec4(display(c + mirrored / max(opacity, 0.05)) * opacity, opacity);
}
"""
)

# Strands are lines shaded at their points, by Kajiya and Kay's model with two highlights.
# look: random number of the strand, place along it 0..1, share of the key lights that arrive, gray
STRAND_VERTEX = (
    """#version 330
uniform mat4 projection;
uniform vec3 eye, keys[2], key_radiance[2], root_color, tip_color;
uniform float shine, cover, taper;
in vec3 position, tangent, irradiance;
in vec4 look;
out vec3 c;
out vec2 thin;  // share of the line that the strand covers, and where its dither begins
"""
    + DISPLAY
    + """
void main() {
    vec3 view = normalize(eye - position);
    vec3 base = mix(root_color, tip_color, look.y * look.y) * (0.55 + 0.9 * look.x);
    base = mix(base, vec3(0.55, 0.55, 0.54) * (0.8 + 0.3 * look.x), look.w);
    vec3 sum = base * irradiance;
    for (int i = 0; i < 2; i++) {
        float along = dot(tangent, normalize(view + keys[i])), shifted = along + 0.12 + 0.1 * (look.x - 0.5);
        float sharp = pow(max(1.0 - along * along, 0.0), 40.0), broad = pow(max(1.0 - shifted * shifted, 0.0), 14.0);
        sum += key_radiance[i] * (look.z * shine * (0.6 + 0.8 * look.x)) * (0.05 * sharp + 0.55 * broad * base);
    }
    c = display(sum);
    thin = vec2(cover * (1.0 - taper * look.y * look.y), 60.0 * look.x);
    gl_Position = projection * vec4(position, 1.0);
}
"""
)
# A strand is finer than a line can be: a share of the line's pixels, dithered, stands for its width.
STRAND_FRAGMENT = """#version 330
in vec3 c;
in vec2 thin;
layout(location = 0) out vec4 result;
void main() {
    if (fract(52.9829189 * fract(dot(gl_FragCoord.xy + thin.y, vec2(0.06711056, 0.00583715)))) > thin.x) discard;
    result = vec4(c, 1.0);
}
"""

# A grid over the image: fine enough to interpolate where each pixel looks to on the backdrop.
SCREEN_VERTEX = """#version 330
uniform mat3 rotation;
uniform vec2 span;
uniform float tangent;
in vec2 corner;
out vec2 behind;
void main() {
    vec3 d = normalize(rotation * vec3(corner * tangent, -1.0));
    behind = vec2(atan(d.x, -d.z), -asin(d.y)) / span + 0.5;
    gl_Position = vec4(corner, 0.0, 1.0);
}
"""
# Averages the finer pixels that a pixel covers, which for 1, 1.5 or 2 finer pixels one bilinear sample does exactly;
# the nearest gives the depth. `range` turns the depth buffer's d into range.x / (range.y - d), in steps of the image.
RESOLVE_FRAGMENT = """#version 400
uniform sampler2D color, depth, backdrop;
uniform vec2 range;
uniform float finer;
in vec2 behind;
layout(location = 0) out vec4 rgba;
layout(location = 1) out uint z;
void main() {
    vec2 low = floor(gl_FragCoord.xy) * finer, border = floor(low) + 1.0;
    vec2 place = (border - 0.5 + (low + finer - border) / finer) / vec2(textureSize(color, 0));
    vec4 sum = texture(color, place), near = textureGather(depth, place);
    float nearest = min(min(near.x, near.y), min(near.z, near.w));
    z = nearest < 1.0 ? uint(range.x / (range.y - nearest) + 0.5) : 0u;
    sum.rgb += texture(backdrop, behind).rgb * (1.0 - sum.a);
    rgba = sum;
}
"""
